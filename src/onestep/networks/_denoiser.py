"""Denoisers: a preconditioning law around a network, built from a config or loaded from a file."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from onestep import components
from onestep.checkpoints.snapshot import read_snapshot
from onestep.networks._laws import LAWS
from onestep.networks._layers import cast_frozen_weights

Compiler = Callable[[Callable[..., Any]], Callable[..., Any]]
_EDM_NAMES = {"SongUNet": "song_unet", "DhariwalUNet": "dhariwal_unet"}


class Preconditioned(nn.Module):
    """A denoiser: a network `model` in a preconditioning law. Teachers and generators are denoisers.

    Attributes:
        preconditioning: Name of the law.
        img_resolution: H and W.
        img_channels: C.
        label_dim: K; 0 for an unconditional network.
        use_fp16: Whether the image path is bfloat16 on CUDA devices.
        sigma_min: Smallest noise level; samplers stay above it.
        sigma_max: Largest noise level; samplers stay below it.
        sigma_data: Standard deviation of the training data.
        image_type: Type of the image path on every device; None leaves the choice to `use_fp16`. A training sets it
            from its `precision:`; it is not part of a network's config.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        preconditioning: str,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        use_fp16: bool = False,
        sigma_min: float = 0.0,
        sigma_max: float = math.inf,
        sigma_data: float = 0.5,
    ) -> None:
        super().__init__()
        if preconditioning not in LAWS:
            raise ValueError(f"preconditioning: got {preconditioning!r}, expected one of {', '.join(LAWS)}")
        self.law = LAWS[preconditioning]
        self.preconditioning, self.use_fp16 = preconditioning, use_fp16
        self.img_resolution, self.img_channels, self.label_dim = img_resolution, img_channels, label_dim
        self.sigma_min, self.sigma_max, self.sigma_data = sigma_min, sigma_max, sigma_data
        self.image_type: torch.dtype | None = None
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
        x = x if self.law.container is None else x.to(self.law.container)
        sigma = torch.as_tensor(sigma, device=x.device)
        if sigma.ndim == 1 and sigma.stride(0) == 0:
            sigma = sigma[:1]  # a level expanded over all rows is embedded once
        scale = self.law.coefficients(sigma.to(torch.float32).reshape(-1, 1, 1, 1), self.sigma_data)
        described = self._described(augment_labels)
        image_type = torch.float32 if force_fp32 else self._image_type(x)
        inner, noise, condition = scale.input * x, scale.noise.flatten(), self._condition(condition, x)
        if self.casts_weights or image_type == torch.float32:
            raw = self.model(inner.to(image_type), noise, condition, **described)
        else:
            with torch.autocast(x.device.type, dtype=image_type):
                raw = self.model(inner.to(torch.float32), noise, condition, **described)
        return scale.skip * x + scale.out * raw.to(torch.float32)

    def execution_view(
        self, *, bfloat16: bool, channels_last: bool, compiled: Compiler, is_constant: bool = True
    ) -> Callable[..., Any]:
        """Set the type and the memory format of the image path, and compile: see `onestep.networks.execution_view`."""
        self.image_type = torch.bfloat16 if bfloat16 else torch.float32
        if bfloat16 and is_constant:
            cast_frozen_weights(self, dtype=torch.bfloat16)
        if channels_last:
            self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return compiled(self)

    def _image_type(self, x: Tensor) -> torch.dtype:
        if self.image_type is not None:
            return self.image_type
        # Differs from the reference: EDM's half precision is float16; bfloat16, as in D2O, needs no loss scaling.
        return torch.bfloat16 if self.use_fp16 and x.is_cuda else torch.float32

    def _condition(self, condition: Tensor | None, x: Tensor) -> Tensor | None:
        """Return the condition [B, ..., label_dim] as float32; zeros if a conditional network gets none."""
        if self.label_dim == 0:
            return None
        if condition is None:
            return torch.zeros(1, self.label_dim, device=x.device)
        if condition.shape[-1] != self.label_dim:
            raise ValueError(f"condition: got {list(condition.shape)}, expected [B, {self.label_dim}]")
        return torch.atleast_2d(condition.to(torch.float32))

    def _described(self, augment_labels: Tensor | None) -> dict[str, Tensor]:
        if augment_labels is None:
            return {}
        if self.takes_augment_labels:
            return {"augment_labels": augment_labels}
        if augment_labels.shape[1]:
            raise ValueError(
                f"augment_labels: got {list(augment_labels.shape)}, but {type(self.model).__name__} takes none. "
                "Fix: remove the augmentation, or choose another network"
            )
        return {}


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
    preconditioning = options.pop("preconditioning", "edm")
    inner, outer = option_names(network), option_names(Preconditioned) - {"preconditioning", "model"}
    if unknown := sorted(options.keys() - inner - outer):
        raise ValueError(
            f"network: got {', '.join(map(repr, unknown))}, expected options among {', '.join(sorted(inner | outer))}"
        )
    if missing := [key for key in ("img_resolution", "img_channels") if key not in options]:
        raise ValueError(f"network: got no {' and no '.join(missing)}, expected the numbers of the dataset")
    model = network(**{key: value for key, value in options.items() if key in inner})
    outer_options = {key: value for key, value in options.items() if key in outer}
    return Preconditioned(model, preconditioning=preconditioning, **outer_options)


def load_denoiser(weights: Path | str) -> Preconditioned:
    """Load the network of a snapshot or a teacher, in evaluation mode; ValueError: the file is not a denoiser's."""
    snapshot = read_snapshot(Path(weights))
    try:
        network = build_denoiser(snapshot.config)
        network.load_state_dict(snapshot.state_dict, strict=True)
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{weights}: not a denoiser of this pipeline: {' '.join(str(error).split())}") from error
    return network.eval().requires_grad_(False)


def network_class(config: Mapping[str, Any]) -> type[nn.Module]:
    """Return the network class that `name` or EDM's `model_type` selects; ValueError: there is none, or not one key."""
    given = [config[key] for key in ("name", "model_type") if key in config]
    if len(given) != 1:
        raise ValueError(f"network: got {given or 'neither'}, expected one of the keys name and model_type")
    return components.load("networks", _EDM_NAMES.get(given[0], given[0]))


def option_names(network: type[nn.Module]) -> set[str]:
    """Return the names of a class's constructor arguments."""
    return set(inspect.signature(network).parameters)
