"""Templates and style sheets: what a code fingerprint does not see of the page."""

from __future__ import annotations

from pathlib import Path

from onestep.files import sha256_of_file

_FOLDER = Path(__file__).parents[1] / "report"


def style_of(*patterns: str) -> list[str]:
    """Return fingerprints of the templates and style sheets that match any of `patterns`."""
    return [sha256_of_file(path)[:16] for pattern in patterns for path in sorted(_FOLDER.glob(pattern))]
