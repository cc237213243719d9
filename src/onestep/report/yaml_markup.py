"""YAML as HTML: verbatim text, with keys and comments marked for the style sheet."""

from __future__ import annotations

import re

from markupsafe import Markup, escape


def highlight_yaml(text: str) -> Markup:
    """Return YAML as HTML, verbatim, with keys in <b> and comments in <i>."""
    return Markup("\n").join(_highlight_line(line) for line in text.splitlines())


def _highlight_line(line: str) -> Markup:
    code, comment = _split_comment(line)
    key = re.match(r"(\s*(?:- )?)([\w.-]+)(:(?:\s.*|))$", code)
    marked = escape(code)
    if key:
        marked = escape(key[1]) + Markup("<b>{}</b>").format(key[2]) + escape(key[3])
    return marked + Markup("<i>{}</i>").format(comment) if comment else marked


def _split_comment(line: str) -> tuple[str, str]:
    """Split a line of YAML before its comment: a `#` at the start or behind a space, outside quotes."""
    quote = ""
    for place, character in enumerate(line):
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character == "#" and (place == 0 or line[place - 1].isspace()):
            return line[:place], line[place:]
    return line, ""
