"""Finds words in the project's prose that its glossary (docs/terms.md) replaces.

Usage: python tests/tools/word_list.py [PATH ...]; without paths, everything the lint covers. Exit code 1 on a finding.
In Python files comments, docstrings and other string literals count; names do not.
"""

from __future__ import annotations

import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
COVERED = (
    "src",
    "workflow",
    "docs",
    "demo",
    "trials",
    "studies",
    "profiles",
    "containers",
    "envs",
    "README.md",
    "CONTRIBUTING.md",
    "Snakefile",
    "config.yaml",
    "Makefile",
    "pyproject.toml",
)
_SUFFIXES = (".py", ".md", ".smk", ".yaml", ".toml", ".jinja", ".sh", ".css")

# A pattern, and what the field writes in its place.
WORDS: tuple[tuple[str, str], ...] = (
    (r"nobody|no one", "name the case: 'none', 'not used'"),
    (r"somebody|whoever|everybody|strangers?", "user, process, caller"),
    (r"anew", "again"),
    (r"stands? (for|in|at|beside|under|twice|apart|between|alone|before|after|here|there|around)", "is, means"),
    (r"what stands|that stands|it stands|which stands", "is"),
    (r"(is|are|was|were|be|been) told", "gets, receives; or name the option"),
    (r"tells?|telling", "reports, shows, raises"),
    (r"says?|saying|said", "states, contains, raises; or name the file and the key"),
    (r"lives|lifes|another life", "runs, restarts, jobs"),
    (r"(look|looks|looked|looking) (through|at|after|away)", "uses, reads, checks, feature extractor of"),
    (r"what is asked|asked for|asks? for|is asked|was asked", "requested, requests"),
    (r"knows?|known to|knew", "has, reads, contains"),
    (r"believes?|believed", "trusts, accepts"),
    (r"wants?|wishes|wish", "needs, requests"),
    (r"speaks?|spoken|talks?|words of", "reports, messages"),
    (r"mended?|mends|mending", "fix"),
    (r"opponent|judges?|judged|judgement", "discriminator, heads, logits"),
    (r"go on|goes on|going on|went on", "continue, resume"),
    (r"take up|takes up|taken up|took up", "resume"),
    (r"brings?|brought", "provides, downloads"),
    (r"network evaluations?", "NFE"),
    (r"moving averages?", "EMA"),
    (r"hundredfold|thereafter|wherewith|thereof|whereof", "plain words"),
)
_PATTERN = re.compile("|".join(rf"(?P<w{n}>\b(?:{word})\b)" for n, (word, _) in enumerate(WORDS)), re.IGNORECASE)


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the line number and text of each piece of prose in a file."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        yield from enumerate(text.splitlines(), start=1)
        return
    kinds = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in kinds:
            yield from enumerate(token.string.splitlines(), start=token.start[0])


def findings(paths: list[Path]) -> Iterator[str]:
    """Yield one line per finding: file, line, word, replacement."""
    for path in paths:
        for number, text in prose(path):
            for match in _PATTERN.finditer(text):
                advice = WORDS[int(str(match.lastgroup)[1:])][1]
                yield f"{path}:{number}: {match[0]!r}; write: {advice}"


def covered(roots: list[Path]) -> list[Path]:
    """Return the files below the roots that contain prose."""
    files = [each for root in roots for each in (sorted(root.rglob("*")) if root.is_dir() else [root])]
    named = [each for each in files if each.is_file() and (each.suffix in _SUFFIXES or each.suffix == "")]
    return [each for each in named if "__pycache__" not in each.parts and each.name != "terms.md"]


def main(arguments: list[str]) -> int:
    """Print all findings; return 1 if there is one."""
    roots = [Path(each) for each in arguments] or [REPOSITORY / each for each in COVERED]
    found = list(findings(covered([root for root in roots if root.exists()])))
    print("\n".join([*found, f"{len(found)} findings"]) if found else "word list: nothing found")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
