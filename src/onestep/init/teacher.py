"""Examine a teacher's file or folder: its architecture, without executing anything in it."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from onestep.checkpoints.denoiser_folder import read_denoiser_folder
from onestep.checkpoints.edm_pickle import of_denoiser, read_edm_pickle
from onestep.files import regular_file
from onestep.inputs import address_filename, is_offline, kept_at, read_registry

_ADDRESSES = ("http://", "https://", "file://")
_ENDINGS = (".pkl", ".safetensors")
_EXPECTED = (
    "a pickle of EDM or EDM2 (.pkl), a snapshot or exported generator of onestep (.safetensors), or the folder of a "
    "UNet2DModel or a DiT of diffusers"
)
_MISSING_LAW = "edm"


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """What is known of a pre-trained denoiser."""

    source: Mapping[str, Any] = field(repr=False)  # its block of the section `inputs`
    filename: str
    architecture: str  # the network's class, or `as published` where the file is not here
    resolution: int
    channels: int
    classes: int  # width of its condition; 0 for an unconditional one
    law: str = _MISSING_LAW
    parameters: int | None = None


def examine_teacher(given: str, *, folder: Path) -> Teacher:
    """Examine a file, an address, or a name of fetch/registry.yaml; an address is downloaded to `folder`/inputs.

    Raises:
        ValueError: It is nothing that a run can start from, or cannot be downloaded.
    """
    registry = read_registry()
    names = [name for name, each in registry.items() if each.network and given in (name, *each.addresses)]
    if names:
        network = registry[names[0]].network or {}
        source = {"published": names[0]}
        sizes = {key: int(value) for key, value in network.items()}
        return Teacher(
            source=source,
            filename=names[0],
            architecture="as published",
            resolution=sizes["resolution"],
            channels=sizes["channels"],
            classes=sizes["classes"],
            law=registry[names[0]].law or ("ddpm" if registry[names[0]].folder else _MISSING_LAW),
        )
    if given.startswith(_ADDRESSES):
        return _described(_downloaded(given, folder=folder), source={"url": given})
    path = Path(given)
    if not path.exists():
        known = ", ".join(name for name, each in registry.items() if each.network)
        fix = f"Fix: correct the path, or write none, or one of: {known}"
        raise ValueError(f"--teacher: got {given!r}, expected a file, an address or a published name. {fix}")
    return _described(path, source={"file": given})


def _downloaded(address: str, *, folder: Path) -> Path:
    if not address_filename(address).endswith(_ENDINGS):
        raise ValueError(f"--teacher: got {address}, expected {_EXPECTED}. Fix: another address")
    from onestep.fetch.store import Store, remote_file

    source = {"url": address}
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.chdir(folder):
        Store(offline=is_offline()).fetch(remote_file(source, name="teacher"))
    return folder / kept_at(source, name="teacher")


def _described(path: Path, *, source: Mapping[str, Any]) -> Teacher:
    if not path.is_dir() and path.suffix not in _ENDINGS:
        raise ValueError(f"{path}: got a file that ends in {path.suffix or 'nothing'}, expected {_EXPECTED}")
    if path.is_dir():
        config, parameters = _folder(path)
    else:
        config, parameters = _snapshot(path) if path.suffix == ".safetensors" else _pickle(path)
    name = config.get("name", config.get("model_type", "?"))
    sizes = [config.get(key, 0) for key in ("img_resolution", "img_channels", "label_dim")]
    if not all(type(each) is int for each in sizes) or 0 in sizes[:2]:
        raise ValueError(f"{path}: got the network {name!r} without an image size, expected a denoiser, {_EXPECTED}")
    return Teacher(
        source=source,
        filename=path.name,
        architecture=str(name),
        resolution=sizes[0],
        channels=sizes[1],
        classes=sizes[2],
        law=config.get("preconditioning", _MISSING_LAW),
        parameters=parameters,
    )


def _snapshot(path: Path) -> tuple[Mapping[str, Any], int]:
    """Return the config in a snapshot's header, and the number of its weights."""
    try:
        with safe_open(regular_file(path), framework="numpy") as file:
            config = json.loads((file.metadata() or {}).get("config", "null"))
            numbers = sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    except (SafetensorError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: got no whole safetensors file ({error}), expected {_EXPECTED}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path}: got weights without the config of a network, expected {_EXPECTED}")
    return config, numbers


def _folder(path: Path) -> tuple[Mapping[str, Any], int]:
    network = read_denoiser_folder(path)
    return network.config, sum(tensor.numel() for tensor in network.state_dict.values())


def _pickle(path: Path) -> tuple[Mapping[str, Any], int]:
    checkpoint = of_denoiser(read_edm_pickle(path))
    return checkpoint.config, sum(tensor.numel() for tensor in checkpoint.state_dict.values())
