"""Names of the laws around networks, and which law a teacher of config.yaml has."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from onestep.inputs import address_filename, read_registry

Law = Literal["edm", "d2o", "ddpm", "flow"]
"""What a network estimates and how the noise level enters it; the equations are in networks/_laws.py."""

STATE_DICT_LAWS: tuple[Law, ...] = ("ddpm", "flow")
"""Of the state dicts of transformers that are read: that of DiT, and that of SiT, which have the same tensors."""

_STATE_DICTS = (".pt", ".pth", ".bin")
_FOLDER_LAW: Law = "ddpm"  # of UNet2DModel and DiT with the schedule of DDPM, the only folders that are read


def laws_like(law: str) -> tuple[str, ...]:
    """Return the laws that suit a network trained with one: EDM's and D2O's suit both, any other itself alone."""
    return ("edm", "d2o") if law in ("edm", "d2o") else (law,)


def teacher_law(config: Any, name: str) -> str | None:
    """Return the law of an entry of `teachers` if the config determines it; None if only the file of weights does.

    `config` is a checked config or the document that it is read from, of which wrong parts have no law.
    """
    for _ in range(len(_at(config, "runs") or ()) + 1):  # a circle is refused elsewhere
        teacher = _at(config, "teachers", name)
        if (stated := _at(teacher, "preconditioning")) is not None:
            return stated if isinstance(stated, str) else None
        if (run := _at(config, "runs", _at(teacher, "run"))) is None:
            return _FOLDER_LAW if is_folder(config, teacher) else published_law(config, teacher)
        law = _at(run, "preconditioning") or (_at(run, "network") and (_at(run, "network", "preconditioning") or "edm"))
        if law is not None or not isinstance(name := _at(run, "teacher"), str):
            return law if isinstance(law, str) else None
    return None


def is_folder(config: Any, teacher: Any) -> bool:
    """Return whether the weights of a teacher are a folder: of the registry, or on this machine."""
    source = _at(config, "inputs", _at(teacher, "weights") or _at(teacher, "pickle"))
    published, file = _at(source, "published"), _at(source, "file")
    if isinstance(published, str):
        return published in read_registry() and read_registry()[published].folder
    return isinstance(file, str) and (file.endswith("/") or Path(file).is_dir())


def published_law(config: Any, teacher: Any) -> str | None:
    """Return the law that the registry states for the weights of a teacher; None if they are not from there."""
    published = _at(config, "inputs", _at(teacher, "weights") or _at(teacher, "pickle"), "published")
    entry = read_registry().get(published) if isinstance(published, str) else None
    return None if entry is None else entry.law


def is_state_dict(config: Any, teacher: Any) -> bool:
    """Return whether the weights of a teacher are tensors by name in a file of torch.save: of DiT or SiT."""
    source = _at(config, "inputs", _at(teacher, "weights") or _at(teacher, "pickle"))
    published, url, file = (_at(source, key) for key in ("published", "url", "file"))
    entry = read_registry().get(published) if isinstance(published, str) else None
    name = entry.filename if entry is not None else address_filename(url) if isinstance(url, str) else file
    return isinstance(name, str) and name.endswith(_STATE_DICTS)


def _at(value: Any, *keys: Any) -> Any:
    """Return the value at a path of keys of mappings or names of attributes; None if there is no such value."""
    for key in keys:
        if not isinstance(key, str):
            return None
        value = value.get(key) if isinstance(value, Mapping) else getattr(value, key, None)
    return value
