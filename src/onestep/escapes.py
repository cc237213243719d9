"""Text for formats in which line breaks and control characters have a meaning."""

from __future__ import annotations

import re

# Control characters, and what Unicode counts as the end of a line or a paragraph.
_BREAKS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
# What XML and HTML cannot hold; tab and line feed are allowed.
_NO_TEXT = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_FORMULA = tuple("=+-@\uff1d\uff0b\uff0d\uff20")  # also the wide forms, which some programs read alike


def one_line(text: str) -> str:
    """Return text in one line: a space for each stretch of line breaks and control characters."""
    return _BREAKS.sub(" ", text).strip() if _BREAKS.search(text) else text


def markdown(text: str) -> str:
    """Return text for one line of Markdown, its markup escaped; an underscore inside a word is none."""
    escaped = re.sub(r"([\\`*~\[\]|])", r"\\\1", one_line(text)).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", escaped)


def csv_cell(text: str) -> str:
    """Return text for a cell of CSV that no spreadsheet computes."""
    line = one_line(text)
    return f"'{line}" if line.lstrip().startswith(_FORMULA) else line


def markup(document: str) -> str:
    """Return a document of HTML or SVG with a replacement character for each one that it cannot hold."""
    return _NO_TEXT.sub("\N{REPLACEMENT CHARACTER}", document.replace("\r\n", "\n").replace("\r", "\n"))
