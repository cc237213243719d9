"""Networks pickled in EDM's persistence format, which EDM2 has too, read without executing anything in the file.

Source: NVlabs/edm, `torch_utils/persistence.py`. An ordinary unpickler would run the source text in the file.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onestep.checkpoints.digests import checked
from onestep.checkpoints.safe_pickle import Budget, kind, naming, read_pickle_file
from onestep.checkpoints.saved_modules import Module, Storage, StoredArray, StoredTensor, allowed_globals

_MOST_TENSORS = 20_000
_DEEPEST = 64
_LONGEST_NAME = 512
_EDM2 = "unet."  # begins the names of EDM2's tensors; EDM's begin with `model.`


@dataclass(frozen=True, kw_only=True)
class EdmCheckpoint:
    """A network from a file."""

    config: dict[str, Any]  # keyword arguments of its constructor; plain Python values
    state_dict: dict[str, Tensor]  # parameters and buffers, with torch's names in torch's order; tied ones share memory
    class_name: str  # for the record only


def read_edm_pickle(path: Path | str) -> EdmCheckpoint:
    """Read the EMA network (key `ema`) of a network pickle of EDM, EDM2 or D2O, protocols 2 to 5.

    Any other file, a damaged one, and one that names a global that is not allowed are a ValueError.
    """
    with naming(path, fix="expected one of EDM's network pickles, whole as published"):
        document, budget = read_pickle_file(checked(path), allowed=allowed_globals)
        if type(document) is not dict:
            raise ValueError(f"the file holds {kind(document)}, not a dict with the key 'ema'")
        if "ema" not in document:
            found = ", ".join(repr(key)[:40] for key in list(document)[:8]) or "none"
            raise ValueError(f"there is no key 'ema' in the file; its keys are: {found}")
        network = document["ema"]
        if type(network) is not Module:
            raise ValueError(f"under 'ema' the file holds {kind(network)}, not a network")
        config, state_dict = _config(network, budget), tensors_of(network, budget)
        return EdmCheckpoint(config=config, state_dict=state_dict, class_name=network.class_name[:200])


def of_denoiser(checkpoint: EdmCheckpoint) -> EdmCheckpoint:
    """Return a checkpoint with config and tensors as denoisers of this package have them; one of EDM has them already.

    EDM2's networks are recognized by the names of their tensors; their config names no class.
    """
    if not any(name.startswith(_EDM2) for name in checkpoint.state_dict):
        return checkpoint
    config = {key: value for key, value in checkpoint.config.items() if key != "logvar_channels"}
    return replace(checkpoint, config={"name": "edm2", **config}, state_dict=edm2_tensors(checkpoint.state_dict))


def edm2_tensors(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a network of EDM2 by their names in a denoiser; those that have these names keep them.

    The estimate of the loss that EDM2 trains beside its network, `logvar_*`, is left out.
    """
    return {
        f"model.{name.removeprefix(_EDM2)}" if name.startswith(_EDM2) else name: tensor
        for name, tensor in state_dict.items()
        if not name.startswith("logvar_")
    }


def read_metric_pickle(path: Path | str) -> dict[str, Tensor]:
    """Read the tensors of a pickle that is one network, as NVIDIA publishes feature extractors; else a ValueError."""
    with naming(path, fix="expected one of NVIDIA's metric networks as a pickle"):
        network, budget = read_pickle_file(checked(path), allowed=allowed_globals)
        if type(network) is not Module:
            raise ValueError(f"the file holds {kind(network)}, not a network")
        return tensors_of(network, budget)


def read_statistics_pickle(path: Path | str) -> dict[str, np.ndarray]:
    """Read the reference statistics of EDM2, `mu` and `sigma` under `fid`, `fd_dinov2` or both; else a ValueError.

    The arrays are `mu` and `sigma` of FID, and `mu_dinov2` and `sigma_dinov2`.
    """
    with naming(path, fix="expected the statistics of a dataset as EDM2 publishes them"):
        document, _ = read_pickle_file(checked(path), allowed=allowed_globals)
        found: dict[str, np.ndarray] = {}
        for metric, suffix in (("fid", ""), ("fd_dinov2", "_dinov2")):
            moments: Any = document.get(metric) if type(document) is dict else None
            for name in ("mu", "sigma") if type(moments) is dict else ():
                array = moments.get(name)
                if type(array) is not StoredArray:
                    raise ValueError(f"{name} of {metric} is {kind(array)}, not an array of numpy")
                found[f"{name}{suffix}"] = array.load()
        if not found:
            raise ValueError(f"the file holds {kind(document)} without the statistics fid or fd_dinov2")
        return found


def _config(network: Module, budget: Budget) -> dict[str, Any]:
    arguments = network.state.get("_init_kwargs")
    if type(arguments) is not dict:
        raise ValueError("the network has no record (_init_kwargs) of its constructor's arguments")
    if network.state.get("_init_args"):
        raise ValueError("the network's constructor got arguments without names (_init_args), which are not supported")
    return _plain(arguments, budget=budget, depth=0)


def _plain(value: Any, *, budget: Budget, depth: int) -> Any:
    """Return a copy of `value` made of plain values; refuse one that unfolds too far."""
    budget.step()
    if depth > _DEEPEST:
        raise ValueError(f"the network's arguments are nested deeper than {_DEEPEST} levels")
    if value is None or type(value) in (bool, int, float, str):
        return value
    if type(value) in (list, tuple):
        return type(value)(_plain(item, budget=budget, depth=depth + 1) for item in value)
    if type(value) is dict and all(type(key) is str for key in value):
        return {key: _plain(item, budget=budget, depth=depth + 1) for key, item in value.items()}
    raise ValueError(f"among the network's arguments is {kind(value)}; numbers, texts, lists and dicts are read")


def tensors_of(network: Module, budget: Budget) -> dict[str, Tensor]:
    """Return the parameters and buffers of a network, by torch's names in torch's order."""
    stored: dict[str, StoredTensor] = {}
    for name, tensor in _tensors(network, "", budget=budget, depth=0):
        if name in stored or len(stored) >= _MOST_TENSORS or len(name) > _LONGEST_NAME:
            raise ValueError(f"the tensor {name[:80]!r} is there twice, has too long a name, or is one too many")
        stored[name] = tensor
        budget.copy(math.prod(tensor.size) * tensor.storage.dtype.itemsize)
    if not stored:
        raise ValueError("the network has no weights")
    storages: dict[Storage, Tensor] = {}
    for tensor in stored.values():
        if tensor.storage not in storages:
            budget.copy(len(tensor.storage.raw))
            storages[tensor.storage] = tensor.storage.load()
    return {
        name: torch.as_strided(storages[tensor.storage], tensor.size, tensor.stride, tensor.offset)
        for name, tensor in stored.items()
    }


def _tensors(module: Module, prefix: str, *, budget: Budget, depth: int) -> Iterator[tuple[str, StoredTensor]]:
    """Yield a module's tensors in torch's order: parameters, persistent buffers, submodules."""
    budget.step()
    if depth > _DEEPEST:
        raise ValueError(f"networks are nested deeper than {_DEEPEST} levels, at {prefix[:80]!r}")
    unsaved = module.state.get("_non_persistent_buffers_set", set())
    if type(unsaved) is not set:
        raise ValueError(f"the names of the non-persistent buffers are {kind(unsaved)}, not a set")
    for name, tensor in _members(module, "_parameters", StoredTensor, budget=budget):
        if not tensor.storage.dtype.is_floating_point:
            raise ValueError(f"the parameter {(prefix + name)[:80]!r} is {tensor.storage.dtype}, not floating point")
        yield prefix + name, tensor
    for name, tensor in _members(module, "_buffers", StoredTensor, budget=budget):
        if name not in unsaved:
            yield prefix + name, tensor
    for name, part in _members(module, "_modules", Module, budget=budget):
        yield from _tensors(part, f"{prefix}{name}.", budget=budget, depth=depth + 1)


def _members(module: Module, table: str, expected: type, *, budget: Budget) -> Iterator[tuple[str, Any]]:
    """Yield the members of `table` that are not None (None: registered and absent)."""
    members = module.state.get(table)
    if type(members) is not dict:
        raise ValueError(f"a network's {table} are {kind(members)}, not a dict")
    for name, member in members.items():
        budget.step()
        if type(name) is not str or not name or "." in name:
            raise ValueError(f"a network's {table} hold the name {str(name)[:40]!r}; a text without dots is expected")
        if member is not None and type(member) is not expected:
            raise ValueError(f"{name[:40]!r} among a network's {table} is {kind(member)}")
        if member is not None:
            yield name, member
