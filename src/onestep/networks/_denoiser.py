"""Denoisers: a preconditioning law around a network, built from a config or loaded from a file.

A law is c_skip, c_out, c_in and c_noise as functions of sigma; the denoiser around a network F is
D(x; sigma) = c_skip x + c_out F(c_in x; c_noise) (Karras et al., arXiv:2206.00364, eq. 7).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from onestep import components
from onestep.chain import sampler_in
from onestep.checkpoints.snapshot import read_snapshot
from onestep.networks._layers import cast_frozen_weights

Compiler = Callable[[Callable[..., Any]], Callable[..., Any]]
Coefficients = tuple[Tensor, Tensor, Tensor, Tensor]  # c_skip, c_out, c_in, c_noise, each of the shape of sigma

_EDM_NAMES = {"SongUNet": "song_unet", "DhariwalUNet": "dhariwal_unet"}
_D2O_SIGMA_MIN = 0.002  # where D2O's denoiser is the identity


def edm_coefficients(sigma: Tensor, sigma_data: float) -> Coefficients:
    """Return EDM's factors (arXiv:2206.00364, table 1)."""
    variance = sigma**2 + sigma_data**2
    return sigma_data**2 / variance, sigma * sigma_data / variance.sqrt(), 1 / variance.sqrt(), sigma.log() / 4


def d2o_coefficients(sigma: Tensor, sigma_data: float) -> Coefficients:
    """Return D2O's factors: EDM's, shifted so that D is the identity at sigma 0.002.

    This is the boundary condition of consistency models (arXiv:2303.01469, appendix C); the denominator of c_out is
    not shifted.
    """
    above = sigma - _D2O_SIGMA_MIN
    skip, out = sigma_data**2 / (above**2 + sigma_data**2), above * sigma_data / (sigma**2 + sigma_data**2).sqrt()
    return skip, out, *edm_coefficients(sigma, sigma_data)[2:]


# The factors, and the type of the noisy images and of the sum of the two terms; None keeps the images' type: float64
# images are scaled and summed in float64 around the network, as in the D2O reference.
_LAWS: Mapping[str, tuple[Callable[[Tensor, float], Coefficients], torch.dtype | None]] = {
    "edm": (edm_coefficients, torch.float32),
    "d2o": (d2o_coefficients, None),
}


class Preconditioned(nn.Module):
    """A denoiser: a network `model` in a preconditioning law. Teachers and generators are denoisers.

    Attributes:
        preconditioning: Name of the law.
        img_resolution: H and W.
        img_channels: C.
        label_dim: K; 0 for an unconditional network.
        use_fp16: Whether the image path is bfloat16 on CUDA devices.
        sigma_min: Smallest noise level of samplers; `sigma_max` is the largest.
        sigma_data: Standard deviation of the training data.
        image_type: Type of the image path on every device; None leaves the choice to `use_fp16`. A training sets it
            from its `precision:`; it is not part of a network's config.
        sampler: Block of the sampler that the file of a generator names; None if it names none.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        preconditioning: str = "edm",
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        use_fp16: bool = False,
        sigma_min: float = 0.0,
        sigma_max: float = math.inf,
        sigma_data: float = 0.5,
    ) -> None:
        super().__init__()
        if preconditioning not in _LAWS:
            raise ValueError(f"preconditioning: got {preconditioning!r}, expected one of {', '.join(_LAWS)}")
        self._coefficients, self._container = _LAWS[preconditioning]
        self.preconditioning, self.use_fp16 = preconditioning, use_fp16
        self.img_resolution, self.img_channels, self.label_dim = img_resolution, img_channels, label_dim
        self.sigma_min, self.sigma_max, self.sigma_data = sigma_min, sigma_max, sigma_data
        self.image_type: torch.dtype | None = None
        self.sampler: Mapping[str, Any] | None = None
        self.takes_augment_labels = "augment_labels" in inspect.signature(model.forward).parameters
        # The optional attributes of the network's family: see `onestep.networks.Network`.
        self.casts_weights = bool(getattr(model, "casts_weights", False))
        self.freeze_levels: Mapping[str, tuple[str, ...]] = getattr(model, "freeze_levels", {})
        self.teacher_only: tuple[str, ...] = getattr(model, "teacher_only", ())
        self.model = model

    def forward(
        self,
        x: Tensor,
        sigma: Tensor | float,
        condition: Tensor | None = None,
        augment_labels: Tensor | None = None,
        *,
        force_fp32: bool = False,
    ) -> Tensor:
        """Estimate the clean images D(x; sigma) [B, C, H, W].

        Args:
            x: Noisy images [B, C, H, W], float32 or float64.
            sigma: Noise levels [B], or anything that broadcasts to it.
            condition: [B, K]; None is a condition of zeros.
            augment_labels: Parameters of the images' augmentations [B, A]; None is no augmentation.
            force_fp32: Run in float32, whatever `use_fp16` and `image_type`.

        Raises:
            ValueError: The condition has another width than K, or the network does not take the augmentation labels.
        """
        x = x if self._container is None else x.to(self._container)
        sigma = torch.as_tensor(sigma, device=x.device)
        if sigma.ndim == 1 and sigma.stride(0) == 0:
            sigma = sigma[:1]  # a level expanded over all rows is embedded once
        skip, out, scale, noise = self._coefficients(sigma.to(torch.float32).reshape(-1, 1, 1, 1), self.sigma_data)
        described, condition = self._described(augment_labels), condition_of(condition, width=self.label_dim, like=x)
        inner, noise = scale * x, noise.flatten()
        image_type = torch.float32 if force_fp32 else self._image_type(x)
        if self.casts_weights or image_type == torch.float32:
            raw = self.model(inner.to(image_type), noise, condition, **described)
        else:
            with torch.autocast(x.device.type, dtype=image_type):
                raw = self.model(inner.to(torch.float32), noise, condition, **described)
        return skip * x + out * raw.to(torch.float32)

    def execution_view(self, *, bfloat16: bool, compiled: Compiler, is_constant: bool = True) -> Callable[..., Any]:
        """Set the type of the image path, and compile: see `onestep.networks.execution_view`."""
        self.image_type = torch.bfloat16 if bfloat16 else torch.float32
        if bfloat16 and is_constant:
            cast_frozen_weights(self, dtype=torch.bfloat16)
        return compiled(self)

    def _image_type(self, x: Tensor) -> torch.dtype:
        if self.image_type is not None:
            return self.image_type
        # Differs from the reference: EDM's half precision is float16; bfloat16, as in D2O, needs no loss scaling.
        return torch.bfloat16 if self.use_fp16 and x.is_cuda else torch.float32

    def _described(self, augment_labels: Tensor | None) -> dict[str, Tensor]:
        if augment_labels is None:
            return {}
        if augment_labels.shape[1] and not self.takes_augment_labels:
            raise ValueError(
                f"augment_labels: got {list(augment_labels.shape)}, but {type(self.model).__name__} takes none. "
                "Fix: remove the augmentation, or choose another network"
            )
        return {"augment_labels": augment_labels} if self.takes_augment_labels else {}


def condition_of(condition: Tensor | None, *, width: int, like: Tensor) -> Tensor | None:
    """Return a condition [B, ..., width] as float32; None is zeros on the device of `like`, or None for width 0.

    Raises:
        ValueError: It has another width.
    """
    if width == 0:
        return None
    if condition is None:
        return torch.zeros(1, width, device=like.device)
    if condition.shape[-1] != width:
        raise ValueError(f"condition: got {list(condition.shape)}, expected [B, {width}]")
    return torch.atleast_2d(condition.to(torch.float32))


def build_denoiser(config: Mapping[str, Any]) -> Preconditioned:
    """Build a denoiser with fresh weights from torch's global generator.

    Its state dict has EDM's names, so `load_state_dict(strict=True)` takes the weights of a published checkpoint.

    Args:
        config: `name` (`song_unet`, `dhariwal_unet`, or `my_module:MyClass`) or EDM's `model_type` (`SongUNet`,
            `DhariwalUNet`); the options of the network and of `Preconditioned`; `preconditioning`, by default `edm`.

    Raises:
        ValueError: A key is unknown or missing, or a value is not among its choices.
    """
    network = network_class(config)
    options = {key: value for key, value in config.items() if key not in ("name", "model_type")}
    inner, outer = option_names(network), option_names(Preconditioned) - {"model"}
    if unknown := sorted(options.keys() - inner - outer):
        expected = ", ".join(sorted((inner | outer) - {"preconditioning"}))
        raise ValueError(f"network: got {', '.join(map(repr, unknown))}, expected options among {expected}")
    if missing := [key for key in ("img_resolution", "img_channels") if key not in options]:
        raise ValueError(f"network: got no {' and no '.join(missing)}, expected the numbers of the dataset")
    model = network(**{key: value for key, value in options.items() if key in inner})
    return Preconditioned(model, **{key: value for key, value in options.items() if key in outer})


def load_denoiser(weights: Path | str) -> Preconditioned:
    """Load the network of a snapshot or a teacher, in evaluation mode; ValueError: the file is not a denoiser's."""
    snapshot = read_snapshot(Path(weights))
    try:
        network = _with_weights(snapshot.config, snapshot.state_dict)
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{weights}: not a denoiser of this pipeline: {' '.join(str(error).split())}") from error
    network.sampler = sampler_in(snapshot.note)
    return network.eval().requires_grad_(False)


def _with_weights(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Preconditioned:
    """Build a network with these weights; ValueError or RuntimeError: they do not fit."""
    if network_class(config).__module__.partition(".")[0] != __package__.partition(".")[0]:
        network = build_denoiser(config)  # it may keep tensors that are not in its state dict
        network.load_state_dict(weights, strict=True)
        return network
    # Without random weights first, which take longer than the file.
    with torch.device("meta"):
        network = build_denoiser(config)
    types = {name: each.dtype for name, each in network.state_dict().items()}
    # Copies: tensors of a file may be less aligned than torch's own, and kernels may round accordingly.
    copies = {name: each.to(types.get(name, each.dtype), copy=True) for name, each in weights.items()}
    network.load_state_dict(copies, strict=True, assign=True)
    return network


def network_class(config: Mapping[str, Any]) -> type[nn.Module]:
    """Return the network class that `name` or EDM's `model_type` selects; ValueError: there is none, or not one key."""
    given = [config[key] for key in ("name", "model_type") if key in config]
    if len(given) != 1:
        raise ValueError(f"network: got {given or 'neither'}, expected one of the keys name and model_type")
    return components.load("networks", _EDM_NAMES.get(given[0], given[0]))


def option_names(network: type[nn.Module]) -> set[str]:
    """Return the names of a class's constructor arguments."""
    return set(inspect.signature(network).parameters)
