"""Training states, in folders that are complete or absent: a killed run resumes from the newest.

`state-000000128000/` holds `state.safetensors` and `manifest.json`, with the size and SHA-256 of the other file and a
digest of its own content, so that damage is detected. A folder is filled under a temporary name and then renamed.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onestep.checkpoints.snapshot import read_tensors, write_tensors
from onestep.files import (
    canonical_json,
    flush,
    is_abandoned,
    read_json,
    regular_file,
    sha256_of_file,
    sha256_of_text,
    write_json,
)

_logger = logging.getLogger(__name__)

_FORMAT = "onestep-training-state-1"
_TENSORS, _MANIFEST = "state.safetensors", "manifest.json"
_NAME = re.compile(r"state-\d{12,}")
# .state-000000128000.writing.HOST.PID.tmp
_TEMPORARY = re.compile(r"\..+\.(?:writing|removing)\.(?P<host>.+)\.(?P<process>\d+)\.tmp")
# Execution options of an optimizer: those of the resuming machine apply.
_OWN_FLAGS = ("foreach", "fused", "capturable", "differentiable")
# What reading a damaged state raises; nesting or missing keys in its manifest are the last ones.
_DAMAGE = (ValueError, OSError, RecursionError, KeyError, TypeError)
_WAY_OUT = "resume with the run's first configuration"


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """The state from which a run resumes bitwise; tensors are on the CPU, values as JSON keeps them."""

    images_seen: int
    tensors: dict[str, Tensor]
    values: dict[str, Any]
    path: Path  # its folder


def write_training_state(
    folder: Path | str, *, images_seen: int, tensors: Mapping[str, Tensor], values: Mapping[str, Any], keep: int = 2
) -> Path:
    """Write a state, complete or not at all; remove all but the newest `keep` intact states; return its folder.

    States with more images than this one, left by a run that resumed from an older state, are kept. Only one process
    may write to a folder at a time. Values that JSON cannot keep, or a `keep` less than 1, are a ValueError.
    """
    if keep < 1 or images_seen < 0:
        raise ValueError(f"{folder}: keep is {keep}, images_seen {images_seen}; expected at least 1 and at least 0")
    path = Path(folder) / f"state-{images_seen:012d}"
    _sweep(path.parent)
    if len(_states(path.parent)) > keep:  # left by a process that was killed between writing and removing
        _prune(path.parent, below=images_seen, keep=keep)
    fresh = _temporary(path, "writing")
    fresh.mkdir(parents=True)
    digest = write_tensors(fresh / _TENSORS, tensors, texts={"format": _FORMAT})
    file = {"size": (fresh / _TENSORS).stat().st_size, "sha256": digest}
    content = {"format": _FORMAT, "images_seen": images_seen, "files": {_TENSORS: file}, "values": dict(values)}
    try:
        # As they will be read, so that the digests agree.
        content = json.loads(json.dumps(content, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{fresh}: the values of a state must be JSON-able: {error}") from error
    write_json(fresh / _MANIFEST, {**content, "sha256": sha256_of_text(canonical_json(content))})
    if path.exists():
        _remove(path)
    fresh.rename(path)
    flush(path.parent)
    _prune(path.parent, below=images_seen, keep=keep - 1)
    return path


def _prune(folder: Path, *, below: int, keep: int) -> None:
    """Remove the states with fewer than `below` images, except the newest `keep` intact ones."""
    kept = 0
    for each in _states(folder):
        if _images_seen(each) < below:
            if kept < keep and _is_intact(each):
                kept += 1
            else:
                _remove(each)


def read_training_state(folder: Path | str, *, below: int | None = None) -> TrainingState | None:
    """Read the newest intact state, with less than `below` images if that is given, or None without one.

    Damaged states are skipped, with a warning in the log. If all in the folder are damaged, it is a ValueError.
    """
    found = [path for path in _states(Path(folder)) if below is None or _images_seen(path) < below]
    for path in found:
        try:
            manifest = _checked_manifest(path)
            tensors, _ = read_tensors(path / _TENSORS)
        except _DAMAGE as error:
            _logger.warning("%s: this training state is damaged and skipped: %s", path, error)
            continue
        return TrainingState(images_seen=manifest["images_seen"], tensors=tensors, values=manifest["values"], path=path)
    if found and below is None:
        damage = f"all {len(found)} training states are damaged, the newest is {found[0].name}"
        raise ValueError(f"{folder}: {damage}. Fix: delete the folder to train from the start")
    return None


def discard_training_states(folder: Path | str, *, keep: int = 0) -> None:
    """Remove all states but the newest `keep`, and remains of states, from `folder`; other files stay."""
    for path in _states(Path(folder))[keep:]:
        _remove(path)
    _sweep(Path(folder))


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return an optimizer's tensors by "parameter index.name", such as "0.exp_avg", and the rest for JSON.

    The rest is `scalars` by the same names, and `groups`: the hyperparameters of each and its parameters' indices.
    """
    whole = optimizer.state_dict()
    flat = {f"{index}.{name}": value for index, state in whole["state"].items() for name, value in state.items()}
    tensors = {name: value for name, value in flat.items() if isinstance(value, Tensor)}
    scalars = {name: value for name, value in flat.items() if name not in tensors}
    return tensors, {"scalars": scalars, "groups": whole["param_groups"]}


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
    """Load a state that `optimizer_tensors` split, bitwise; ValueError if the optimizer has other parameters.

    The execution options (foreach, fused, capturable, differentiable) stay the optimizer's own.
    """
    saved, mine = values["groups"], optimizer.state_dict()["param_groups"]
    counts = [[len(group["params"]) for group in groups] for groups in (mine, saved)]
    if counts[0] != counts[1]:
        found = f"parameter groups of sizes {counts[0]}, the saved one had {counts[1]}"
        raise ValueError(f"the optimizer has {found}; {_WAY_OUT}")
    groups = []
    for own, group in zip(mine, saved, strict=True):
        taken = {name: value for name, value in group.items() if name not in _OWN_FLAGS}
        # JSON's lists become tuples where the optimizer has tuples.
        tuples = {name: tuple(value) for name, value in taken.items() if isinstance(own.get(name), tuple)}
        groups.append(own | taken | tuples)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **values["scalars"]}.items():
        index, name = int(key.partition(".")[0]), key.partition(".")[2]
        if isinstance(value, Tensor):
            value, parameter = value.clone(), parameters[index]
            if value.dim() > 0 and value.shape != parameter.shape:
                found = f"the saved {name} of parameter {index} has the shape {list(value.shape)}"
                raise ValueError(f"{found}, the parameter {list(parameter.shape)}; {_WAY_OUT}")
            if value.dim() > 0:
                # In the memory layout of the parameter, as when the optimizer made it; files have one layout.
                value = torch.empty_like(parameter, dtype=value.dtype, device=value.device).copy_(value)
        state.setdefault(index, {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _states(folder: Path) -> list[Path]:
    """Return the folders with a state's name, newest first."""
    named = [path for path in folder.glob("state-*") if _NAME.fullmatch(path.name)]
    return sorted(named, key=_images_seen, reverse=True)


def _images_seen(path: Path) -> int:
    return int(path.name.removeprefix("state-"))


def _checked_manifest(path: Path) -> dict[str, Any]:
    """Return the manifest of an intact state; raise one of `_DAMAGE` for a damaged one."""
    for name in (_MANIFEST, _TENSORS):
        regular_file(path / name)
    manifest = read_json(path / _MANIFEST)
    if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
        raise ValueError(f"{_MANIFEST} is not of the format {_FORMAT}")
    content = {key: value for key, value in manifest.items() if key != "sha256"}
    if manifest.get("sha256") != sha256_of_text(canonical_json(content)):
        raise ValueError(f"{_MANIFEST} has changed since it was written (its SHA-256 differs)")
    if manifest["images_seen"] != _images_seen(path):
        raise ValueError(f"{_MANIFEST} is of {manifest['images_seen']} images, unlike the folder's name")
    written = manifest["files"][_TENSORS]
    size = (path / _TENSORS).stat().st_size
    if size != written["size"]:
        raise ValueError(f"{_TENSORS} has {size} bytes, {written['size']} were written")
    if sha256_of_file(path / _TENSORS) != written["sha256"]:
        raise ValueError(f"{_TENSORS} has changed since it was written (its SHA-256 differs)")
    return manifest


def _is_intact(path: Path) -> bool:
    with contextlib.suppress(*_DAMAGE):
        return bool(_checked_manifest(path))
    return False


def _temporary(path: Path, purpose: str) -> Path:
    return path.with_name(f".{path.name}.{purpose}.{socket.gethostname()}.{os.getpid()}.tmp")


def _remove(path: Path) -> None:
    # Renamed first, so that a crash leaves no incomplete state.
    renamed = _temporary(path, "removing")
    path.rename(renamed)
    # On a network file system a file that is open elsewhere remains; the next sweep removes it.
    shutil.rmtree(renamed, ignore_errors=True)


def _sweep(parent: Path) -> None:
    """Remove temporary folders of processes that ended, and of this process, which must not be writing."""
    for path in parent.glob(".*.tmp"):
        match = _TEMPORARY.fullmatch(path.name)
        if match and is_abandoned(path, host=match["host"], process=int(match["process"])):
            shutil.rmtree(path, ignore_errors=True)
