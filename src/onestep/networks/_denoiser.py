"""Denoisers: a preconditioning law (`_laws.py`) around a network, built from a config or loaded from a file."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from onestep import components
from onestep.chain import sampler_in
from onestep.checkpoints.snapshot import read_snapshot
from onestep.networks._laws import LAWS
from onestep.networks._layers import cast_frozen_weights

Compiler = Callable[[Callable[..., Any]], Callable[..., Any]]

_EDM_NAMES = {"SongUNet": "song_unet", "DhariwalUNet": "dhariwal_unet"}


class Preconditioned(nn.Module):
    """A denoiser: a network `model` in a preconditioning law. Teachers and generators are denoisers.

    Attributes:
        preconditioning: Name of the law; `coefficients` are its factors.
        img_resolution: H and W.
        img_channels: C.
        label_dim: K; 0 for an unconditional network.
        use_fp16: Whether the image path is bfloat16 on CUDA devices.
        sigma_min: Smallest noise level of samplers; `sigma_max` is the largest. Both lie within the law's range.
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
        if preconditioning not in LAWS:
            raise ValueError(f"preconditioning: got {preconditioning!r}, expected one of {', '.join(LAWS)}")
        law = LAWS[preconditioning]
        self.coefficients, self._container = law.coefficients, law.container
        self.preconditioning, self.use_fp16 = preconditioning, use_fp16
        self.img_resolution, self.img_channels, self.label_dim = img_resolution, img_channels, label_dim
        self.sigma_min, self.sigma_max = max(sigma_min, law.sigma_min), min(sigma_max, law.sigma_max)
        self.sigma_data = sigma_data
        self.image_type: torch.dtype | None = None
        self.sampler: Mapping[str, Any] | None = None
        self.takes_augment_labels = "augment_labels" in inspect.signature(model.forward).parameters
        # The optional attributes of the network's family: see `onestep.networks.Network`.
        self.casts_weights = bool(getattr(model, "casts_weights", False))
        self.freeze_levels: Mapping[str, tuple[str, ...]] = getattr(model, "freeze_levels", {})
        self.teacher_only: tuple[str, ...] = getattr(model, "teacher_only", ())
        self.model = model
        if hasattr(model, "published_tensors"):
            self.register_load_state_dict_pre_hook(_take_published)

    def forward(
        self,
        x: Tensor,
        sigma: Tensor | float,
        condition: Tensor | None = None,
        augment_labels: Tensor | None = None,
        *,
        force_fp32: bool = False,
        maps: Literal["only", "beside"] | None = None,
    ) -> Any:
        """Estimate the clean images D(x; sigma) [B, C, H, W].

        Args:
            x: Noisy images [B, C, H, W], float32 or float64.
            sigma: Noise levels [B], or anything that broadcasts to it.
            condition: [B, K]; None is a condition of zeros.
            augment_labels: Parameters of the images' augmentations [B, A]; None is no augmentation.
            force_fp32: Run in float32, whatever `use_fp16` and `image_type`.
            maps: Return inner maps, a tuple [B, C', H', W'] of float32 (`with_maps` of `onestep.networks.Network`), in
                place of the images, for half the work (`only`), or as (images, maps) (`beside`).

        Raises:
            ValueError: The condition has another width than K, or the network does not take the augmentation labels, or
                has no inner maps.
        """
        x = x if self._container is None else x.to(self._container)
        sigma = torch.as_tensor(sigma, device=x.device)
        if sigma.ndim == 1 and sigma.stride(0) == 0:
            sigma = sigma[:1]  # a level expanded over all rows is embedded once
        skip, out, scale, noise = self.coefficients(sigma.to(torch.float32).reshape(-1, 1, 1, 1), self.sigma_data)
        described, condition = self._described(augment_labels), condition_of(condition, width=self.label_dim, like=x)
        inner, noise = scale * x, noise.flatten()
        image_type = torch.float32 if force_fp32 else self._image_type(x)
        network = self.model if maps is None else self._with_maps(stop_early=maps == "only")
        if self.casts_weights or image_type == torch.float32:
            raw = network(inner.to(image_type), noise, condition, **described)
        else:
            with torch.autocast(x.device.type, dtype=image_type):
                raw = network(inner.to(torch.float32), noise, condition, **described)
        if maps is None:
            return skip * x + out * raw.to(torch.float32)
        raw, found = raw
        found = tuple(each.to(torch.float32) for each in found)
        return found if raw is None else (skip * x + out * raw.to(torch.float32), found)

    def _with_maps(self, *, stop_early: bool) -> Callable[..., Any]:
        if not hasattr(self.model, "with_maps"):
            expected = "one with `with_maps` (see onestep/networks/__init__.py)"
            raise ValueError(f"maps: got the network {type(self.model).__name__}, expected {expected}")
        return functools.partial(cast(Any, self.model).with_maps, stop_early=stop_early)

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


def _take_published(denoiser: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Rename the tensors of a file that `load_state_dict` gets as its publisher names them."""
    if not prefix:
        renamed = denoiser.model.published_tensors(state_dict)  # type: ignore[operator, union-attr]
        state_dict.clear()
        state_dict.update(renamed)


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
