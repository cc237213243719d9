"""From a config, or from a file, to a denoiser."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from onestep import plugins
from onestep.checkpoints.snapshot import read_snapshot
from onestep.networks._preconditioning import Preconditioned


def build_denoiser(config: Mapping[str, Any]) -> nn.Module:
    """Build the network a config describes, with fresh weights from torch's global generator.

    Its state dict has EDM's names, so `load_state_dict(strict=True)` takes a published checkpoint's.

    Args:
        config: The keyword arguments of EDM's constructor, with `model_type: SongUNet | DhariwalUNet`, or `name:
            song_unet | dhariwal_unet` in its place; and `preconditioning: edm | d2o`, by default edm.

    Raises:
        ValueError: A key is unknown or missing, or a value is none of its choices.
    """
    options = dict(config)
    preconditioning = options.pop("preconditioning", "edm")
    network = _network_class(options)
    inner, outer = _options(network), _options(Preconditioned) - {"preconditioning", "model"}
    _check_keys(options, allowed=inner | outer)
    model = network(**{key: value for key, value in options.items() if key in inner})
    outer_options = {key: value for key, value in options.items() if key in outer}
    return Preconditioned(model, preconditioning=preconditioning, **outer_options)


def load_denoiser(weights: Path | str) -> nn.Module:
    """Return the network of a snapshot or teacher, in evaluation mode.

    Raises:
        ValueError: The file is no snapshot, or not of a denoiser.
    """
    snapshot = read_snapshot(weights)
    try:
        network = build_denoiser(snapshot.config)
        network.load_state_dict(snapshot.state_dict, strict=True)
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{weights}: not a denoiser of this pipeline: {error}") from error
    return network.eval().requires_grad_(False)


def _network_class(options: dict[str, Any]) -> Callable[..., nn.Module]:
    """Take `name` or `model_type` out of `options`, and return the class it names."""
    names = {"SongUNet": "song_unet", "DhariwalUNet": "dhariwal_unet"}
    given = [options.pop(key) for key in ("name", "model_type") if key in options]
    if len(given) != 1:
        raise ValueError(f"a network is named by one of name and model_type, not by {given or 'neither'}")
    return plugins.load("networks", names.get(given[0], given[0]))


def _options(network: Callable[..., nn.Module]) -> set[str]:
    return set(inspect.signature(network).parameters)


def _check_keys(options: Mapping[str, Any], *, allowed: set[str]) -> None:
    if unknown := sorted(options.keys() - allowed):
        raise ValueError(f"no network option {', '.join(map(repr, unknown))}; choices: {', '.join(sorted(allowed))}")
    if missing := [key for key in ("img_resolution", "img_channels") if key not in options]:
        raise ValueError(f"a network needs {' and '.join(missing)}; the data set has the number")
