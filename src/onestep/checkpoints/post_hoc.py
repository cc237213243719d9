"""The weights of a further average of a training, from those with power-function profiles at its snapshots."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from onestep.checkpoints.digests import checked
from onestep.checkpoints.snapshot import expect_finite, read_snapshot, write_snapshot
from onestep.files import regular_file
from onestep.power_average import Profile, coefficients, exponent_of
from onestep.shapes import misfit

NOTE = "power_average"
"""Key of a snapshot's note: `exponent` of the profile of its average, and `images`, its end."""


def profile_in(path: Path, note: Any) -> Profile:
    """Return the profile in the note of a snapshot. ValueError: The snapshot is of no such average."""
    found: Any = note.get(NOTE) if isinstance(note, dict) else None
    if wrong := misfit(found, {"exponent": float, "images": int}, place=NOTE):
        raise ValueError(f"{path}: {wrong}. Fix: name snapshots of averages that `ema: {{power: ...}}` of a run keeps")
    return Profile(images=found["images"], exponent=found["exponent"])


def write_average(paths: Sequence[Path], output: Path, *, std: float) -> str:
    """Write the average with a relative standard deviation at the latest of the snapshots; return its SHA-256.

    Tensors that are equal in all snapshots, as frozen ones are, and integers are those of the latest.

    Raises:
        ValueError: A file is no such snapshot, is damaged, or of another network, or two have one profile.
    """
    if not paths:
        raise ValueError("snapshots: got none, expected those of averages that `ema: {power: ...}` of a run keeps")
    wanted = exponent_of(std)
    headers = {path: _header(path) for path in paths}
    profiles = {path: profile_in(path, note) for path, (_, note) in headers.items()}
    latest = max(paths, key=lambda path: profiles[path].images)
    for path in paths:
        if headers[path][0] != headers[latest][0]:
            raise ValueError(f"{path}: got another network than in {latest}. Fix: name snapshots of one run")
        if same := next((other for other in paths if other != path and profiles[other] == profiles[path]), None):
            raise ValueError(f"{path}: got the profile of {same}, expected another. Fix: name each snapshot once")
    end = Profile(images=profiles[latest].images, exponent=wanted)
    basis = [path for path in paths if profiles[path].images > 0]  # the start is in no average
    shares = coefficients([profiles[path] for path in basis], [end])[:, 0].tolist() if basis else []
    last = read_snapshot(latest)
    weights = _combined(last.state_dict, dict(zip(basis, shares, strict=True)))
    expect_finite(output, weights)
    note = {**last.note, NOTE: {"exponent": wanted, "images": end.images, "snapshots": len(basis)}}
    return write_snapshot(output, weights, last.config, note=note)


def _header(path: Path) -> tuple[dict[str, Any], Any]:
    """Return shapes and config of a snapshot, and its note."""
    try:
        with safe_open(regular_file(checked(path)), framework="pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
            texts = file.metadata() or {}
        return {"shapes": shapes, "config": texts.get("config")}, json.loads(texts.get("note", "null"))
    except (SafetensorError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a whole snapshot of onestep ({error}). Fix: make it again") from error


def _combined(last: dict[str, Tensor], shares: dict[Path, float]) -> dict[str, Tensor]:
    """Return the sums of tensors of files times their shares, one tensor at a time, in float64."""
    found = dict(last)
    for path in shares:
        with safe_open(path, framework="pt") as file:
            for name in [name for name, tensor in found.items() if tensor is last[name]]:
                if last[name].is_floating_point() and not torch.equal(file.get_tensor(name), last[name]):
                    found[name] = torch.zeros_like(last[name], dtype=torch.float64)
    for path, share in shares.items():
        with safe_open(path, framework="pt") as file:
            for name, total in found.items():
                if total is not last[name]:
                    total.add_(file.get_tensor(name).to(torch.float64), alpha=share)
    return {name: tensor.to(last[name].dtype) for name, tensor in found.items()}
