"""The contract of a denoiser, its builder, and the rule of what may be frozen.

Legend: B images, C H W an image, K classes. Images are float32 around [-1, 1] (the data's standard deviation is
about 0.5) plus noise of standard deviation sigma; `labels` are one-hot float32 [B, K], or None.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch import Tensor, nn

from onestep import plugins
from onestep.networks._freezing import frozen_parameters
from onestep.networks._preconditioning import Preconditioned
from onestep.networks._teacher import one_step_config, teacher_weights_for

__all__ = ["Denoiser", "build_denoiser", "frozen_parameters", "one_step_config", "teacher_weights_for"]


class Denoiser(Protocol):
    """What `build_denoiser` returns, as an `nn.Module`: a teacher and a generator alike.

    Attributes:
        img_resolution: H and W.
        img_channels: C.
        label_dim: K; 0 is unconditional.
        sigma_min: Smallest noise level it takes.
        sigma_max: Largest noise level it takes.
        sigma_data: Standard deviation of the data it was made for.
        use_fp16: Whether it runs in half precision where the images are on a CUDA device.
    """

    img_resolution: int
    img_channels: int
    label_dim: int
    sigma_min: float
    sigma_max: float
    sigma_data: float
    use_fp16: bool

    def forward(
        self,
        x: Tensor,
        sigma: Tensor,
        labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
        *,
        force_fp32: bool = False,
    ) -> Tensor:
        """Estimate the clean images under the noise.

        Args:
            x: Noisy images [B, C, H, W], float32 or float64.
            sigma: Their noise levels [B]; also anything that broadcasts to it.
            labels: Their classes; a conditional network takes None as all zero.
            augment_labels: How they were augmented [B, augment_dim]; None is not at all.
            force_fp32: Whether to run in single precision all the same.

        Returns:
            Images [B, C, H, W].
        """
        ...


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
