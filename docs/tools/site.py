"""Hooks of the documentation site (mkdocs.yml): generated pages, and pages that stand elsewhere in the repository.

The reference is generated from the package. README, CONTRIBUTING, the changelog and the pages of profiles/, containers/
and docs/trials/ become pages of the site, and links between them are turned into links within it.
"""

from __future__ import annotations

import json
import os
import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parent))

import reference

REPOSITORY = Path(__file__).parents[2]
ELSEWHERE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "profiles/README.md": "profiles.md",
    "containers/README.md": "containers.md",
    "docs/notebooks/first_steps.ipynb": "notebooks/first_steps.md",
}
"""Pages by their place in the repository, and their place in the site."""

GENERATED = {"reference/config.md": reference.config_reference, "reference/commands.md": reference.command_reference}
_LINK = re.compile(r"(\]\(|src=\")(?!https?:|#|mailto:|data:)([^)#\"\s]+)")


def on_files(files: Files, *, config: Any) -> Files:
    """Add the pages of other folders, and the generated ones."""
    for place, page in ELSEWHERE.items():
        text = (REPOSITORY / place).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=notebook_page(text) if place.endswith(".ipynb") else text))
    for page, make in GENERATED.items():
        files.append(File.generated(config, page, content=make()))
    return files


def notebook_page(text: str) -> str:
    """Return a notebook (JSON) with its outputs as Markdown."""
    parts = []
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            shown = output.get("data", {})
            printed = "".join(output.get("text", shown.get("text/plain", "")))
            picture = "".join(shown.get("image/png", "")).replace("\n", "")
            parts.append(f'<img alt="" src="data:image/png;base64,{picture}">' if picture else f"```\n{printed}\n```")
    return "\n\n".join(parts)


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Turn links of the repository into those of the site."""
    return links_within(markdown, page=page.file.src_uri)


def links_within(markdown: str, *, page: str) -> str:
    """Return the text of a page of the site with links to pages of the site; others are left as they are."""
    origin = next((place for place, other in ELSEWHERE.items() if other == page), f"docs/{page}")

    def turned(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(origin), match[2]))
        found = ELSEWHERE.get(target) or ELSEWHERE.get(f"{target}/README.md")
        if found is None and target.startswith("docs/"):
            found = target.removeprefix("docs/")
        return match[0] if found is None else match[1] + os.path.relpath(found, posixpath.dirname(page) or ".")

    return _LINK.sub(turned, markdown)
