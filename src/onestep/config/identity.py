"""Identity of a run: its science, which is what would change the weights at a given number of images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from onestep.files import canonical_json, sha256_of_text

_NOT_SCIENCE = (
    *("run", "images", "snapshot_every", "snapshots", "passed", "non_finite_limit", "fast"),
    *("recompute", "shard"),
)
"""Keys of run.yaml that change no weights: the name, the length, the snapshots, when a run is given up, a preset whose
options run.yaml spells out, exact saving of memory, and shards, which like the number of processes change rounding."""


def science(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of run.yaml that changes the weights at a given number of images.

    The length is part of it where a learning rate follows it (`schedule: {name: cosine}`).
    """
    found = {key: value for key, value in document.items() if key not in _NOT_SCIENCE}
    return found | ({"images": document["images"]} if _follows_length(document) else {})


def _follows_length(document: Mapping[str, Any]) -> bool:
    optimizers = document.get("optimizers") or {}
    return any((each.get("schedule") or {}).get("name") == "cosine" for each in optimizers.values())


def spec_of(document: Mapping[str, Any], *, digests: Mapping[str, Any], code: str | None) -> str:
    """Return the run hash, 16 hexadecimal digits: of the science, the input files and optionally the code."""
    return _hash({"science": science(document)}, digests=digests, code=code)


def former_spec_of(document: Mapping[str, Any], *, digests: Mapping[str, Any], code: str | None) -> str:
    """Return the run hash of earlier versions, of the whole run.yaml."""
    return _hash({"run": document}, digests=digests, code=code)


def specs_of(
    document: Mapping[str, Any], *, before: Mapping[str, Any] | None, digests: Mapping[str, Any], code: str | None
) -> list[str]:
    """Return the run hash, and those of earlier versions for the same science, by which a work folder may be found.

    `before` is run.yaml as it was published, before an edit of the length; None if it is not known.
    """
    spec = spec_of(document, digests=digests, code=code)
    is_same = before is not None and spec_of(before, digests=digests, code=code) == spec
    documents = [document, *([before] if before is not None and is_same else [])]
    return [spec, *(former_spec_of(each, digests=digests, code=code) for each in documents)]


def _hash(content: Mapping[str, Any], *, digests: Mapping[str, Any], code: str | None) -> str:
    whole = {**content, "inputs": digests} | ({} if code is None else {"code": code})
    return sha256_of_text(canonical_json(whole))[:16]


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return what differs in the science of two run.yaml, such as `objective.r1_gamma changed (0.0001 -> 0.001)`."""
    return list(_changes(science(before), science(after), place=""))


def _changes(before: Mapping[str, Any], after: Mapping[str, Any], *, place: str) -> Iterator[str]:
    for key in dict.fromkeys([*before, *after]):
        old, new = before.get(key), after.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _changes(old, new, place=f"{place}{key}.")
        elif old != new:
            yield f"{place}{key} changed ({_shown(old)} -> {_shown(new)})"


def _shown(value: Any) -> str:
    text = "none" if value is None else canonical_json(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
