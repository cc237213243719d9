"""How the text of an option is read, by the type and the name of its parameter."""

from __future__ import annotations

import difflib
import functools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter, Token

from onestep import components

_SEED_DIGITS = 20
_SHOWN = 60  # characters of a wrong text

# Parameters whose blocks are components: their family, and what a block may look like.
_FAMILIES = {
    "sampler": ("sampling", """heun18 or '{"name": "heun", "steps": 18}'"""),
    "features": ("features", """inception or '{"name": "inception", "layer": "pool"}'"""),
    "metric": ("metrics", """frechet or '{"name": "inception_score", "splits": 10}'"""),
    "metrics": ("metrics", """frechet,precision_recall or '{"name": "inception_score", "splits": 10}'"""),
}


def read_as(name: str, hint: Any) -> Any:
    """Return the annotation by which cyclopts reads a parameter; types that it reads itself stay."""
    if hint in (Mapping[str, Any], Mapping[str, Any] | None):
        if name not in _FAMILIES:
            return _JSON
        convert: Any = functools.partial(_block, family=_FAMILIES[name][0], example=_FAMILIES[name][1])
        return Annotated[Any, Parameter(converter=convert, n_tokens=1, accepts_keys=False, metavar="NAME|JSON")]
    if hint == Sequence[Mapping[str, Any]]:
        convert = functools.partial(_blocks, family=_FAMILIES[name][0], example=_FAMILIES[name][1])
        return Annotated[Any, Parameter(converter=convert, n_tokens=-1, accepts_keys=False, metavar="NAME,...|JSON...")]
    return _READ.get(hint, hint)


def _json(_: Any, tokens: Sequence[Token]) -> Any:
    try:
        return json.loads(tokens[0].value)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"got {tokens[0].value[:_SHOWN]!r}, expected JSON ({error})") from error


def _block(_: Any, tokens: Sequence[Token], *, family: str, example: str) -> dict[str, Any]:
    return _component(tokens[0].value, family=family, example=example)


def _blocks(_: Any, tokens: Sequence[Token], *, family: str, example: str) -> list[dict[str, Any]]:
    texts = [text for token in tokens for text in _listed(token.value)]
    return [_component(text, family=family, example=example) for text in texts]


def _listed(text: str) -> list[str]:
    """Return the names in `a,b`; JSON, which has commas of its own, is one."""
    return [text] if text[:1] in ("{", "[") else text.split(",")


def _component(text: str, *, family: str, example: str) -> dict[str, Any]:
    """Return the block of a component: from JSON, from its name, or from its name and a number of steps (`heun18`)."""
    if text[:1] in ("{", "["):
        try:
            block = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"got {text[:_SHOWN]!r}, which is no JSON ({error}), expected for example {example}"
            ) from error
        if not isinstance(block, dict):
            raise ValueError(f"got {text[:_SHOWN]!r}, expected for example {example}")
        return block
    known = components.choices(family)
    if text in known or ":" in text:
        return {"name": text}
    stepped = re.fullmatch("(.*?)([0-9]{1,6})", text)
    if stepped and stepped[1] in known and "steps" in components.describe(family, stepped[1]).parameters:
        return {"name": stepped[1], "steps": int(stepped[2])}
    close = difflib.get_close_matches(text, known, n=1)
    meant = f" Did you mean {close[0]}?" if close else ""
    raise ValueError(f"got {text[:_SHOWN]!r}, expected one of {', '.join(known)}, for example {example}.{meant}")


def _paths(_: Any, tokens: Sequence[Token]) -> dict[str, Path]:
    pairs = [token.value.partition("=") for token in tokens]
    if not all(equals for _, equals, _ in pairs):
        raise ValueError(f"got {' '.join(token.value for token in tokens)!r}, expected NAME=PATH")
    return {name: Path(path) for name, _, path in pairs}


def _seeds(_: Any, tokens: Sequence[Token]) -> range:
    first, dash, last = tokens[0].value.partition("-")
    are_numbers = first.isdecimal() and last.isdecimal() and len(tokens[0].value) <= 2 * _SEED_DIGITS
    if not (dash and are_numbers and int(first) <= int(last) < 2**63):
        expected = "--seeds as FIRST-LAST, such as 0-49999, with FIRST <= LAST < 2^63"
        raise ValueError(f"got {tokens[0].value[:_SHOWN]!r}, expected {expected}")
    return range(int(first), int(last) + 1)


def _shown_seeds(seeds: range) -> str:
    return f"{seeds[0]}-{seeds[-1]}"


_JSON = Annotated[Any, Parameter(converter=_json, n_tokens=1, accepts_keys=False, metavar="JSON")]
_PATHS = Annotated[Any, Parameter(converter=_paths, n_tokens=-1, accepts_keys=False, metavar="NAME=PATH...")]
_READ: Mapping[Any, Any] = {
    Mapping[str, Sequence[Path]]: _JSON,
    Mapping[str, Mapping[str, Any]]: _JSON,
    Mapping[str, Mapping[str, Any]] | None: _JSON,
    Mapping[str, Path]: _PATHS,
    Mapping[str, Path] | None: _PATHS,
    Sequence[str]: list[str],
    range: Annotated[Any, Parameter(converter=_seeds, metavar="FIRST-LAST", show_default=_shown_seeds)],
}
