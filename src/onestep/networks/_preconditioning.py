"""Preconditioning: from a network of unit-variance signals to a denoiser of images at any noise level.

D(x; sigma) = c_skip x + c_out F(c_in x; c_noise), Karras et al., arXiv:2206.00364, eq. 7.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Coefficients(NamedTuple):
    """The four factors of the preconditioning, each of the shape of sigma."""

    skip: Tensor
    out: Tensor
    input: Tensor
    noise: Tensor


def edm_coefficients(sigma: Tensor, sigma_data: float) -> Coefficients:
    """Return EDM's factors (arXiv:2206.00364, table 1)."""
    variance = sigma**2 + sigma_data**2
    return Coefficients(
        skip=sigma_data**2 / variance,
        out=sigma * sigma_data / variance.sqrt(),
        input=1 / variance.sqrt(),
        noise=sigma.log() / 4,
    )


def d2o_coefficients(sigma: Tensor, sigma_data: float) -> Coefficients:
    """Return D2O's factors: EDM's, shifted so that D is the identity at sigma 0.002.

    This is the boundary condition of consistency models (arXiv:2303.01469, appendix C), whose smallest noise level
    is 0.002; the denominator of `out` is not shifted.
    """
    above = sigma - 0.002
    edm = edm_coefficients(sigma, sigma_data)
    return edm._replace(
        skip=sigma_data**2 / (above**2 + sigma_data**2),
        out=above * sigma_data / (sigma**2 + sigma_data**2).sqrt(),
    )


class _Law(NamedTuple):
    coefficients: Callable[[Tensor, float], Coefficients]
    container: Callable[[Tensor], Tensor]


PRECONDITIONINGS: Mapping[str, _Law] = MappingProxyType(
    {
        "edm": _Law(edm_coefficients, container=lambda images: images.to(torch.float32)),
        # D2O leaves the images in their type: float64 images are scaled and summed in float64 around the network.
        "d2o": _Law(d2o_coefficients, container=lambda images: images),
    }
)


class Preconditioned(nn.Module):
    """A denoiser: the network as `model`, so that the state dict has EDM's names.

    Args:
        model: Maps (images, noise [B], labels, augment_labels) to images.
        preconditioning: `edm` or `d2o`.
        img_resolution: Pixels a side.
        img_channels: Channels.
        label_dim: Classes; 0 is unconditional.
        use_fp16: Whether the network runs in half precision (bfloat16) where its input is on a CUDA device.
        sigma_min: Smallest noise level the denoiser takes; samplers stay above it.
        sigma_max: Largest noise level the denoiser takes; samplers stay below it.
        sigma_data: Standard deviation of the data.

    Attributes:
        image_type: In which the network runs on any device, `use_fp16` or not, where it is set: by a training, whose
            config decides, and which leaves no trace in the config of the network.
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
        if preconditioning not in PRECONDITIONINGS:
            raise ValueError(f"preconditioning is {preconditioning!r}; choices: {', '.join(PRECONDITIONINGS)}")
        self.preconditioning, self.use_fp16 = preconditioning, use_fp16
        self.img_resolution, self.img_channels, self.label_dim = img_resolution, img_channels, label_dim
        self.sigma_min, self.sigma_max, self.sigma_data = sigma_min, sigma_max, sigma_data
        self.image_type: torch.dtype | None = None
        self.model = model

    def forward(
        self,
        x: Tensor,
        sigma: Tensor,
        labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
        *,
        force_fp32: bool = False,
    ) -> Tensor:
        """Denoise `x` at noise level `sigma`: see `onestep.networks.Denoiser`.

        Raises:
            ValueError: The labels are not those of `label_dim` classes, or the labels of augmentations not as many as
                the network takes.
        """
        law = PRECONDITIONINGS[self.preconditioning]
        x = law.container(x)
        _check_described(augment_labels, of=self.model)
        scale = law.coefficients(_levels(sigma, x).reshape(-1, 1, 1, 1), self.sigma_data)
        inner = (scale.input * x).to(torch.float32 if force_fp32 else self._image_type(x))
        raw = self.model(inner, scale.noise.flatten(), self._one_hot(labels, x), augment_labels)
        return scale.skip * x + scale.out * raw.to(torch.float32)

    def _image_type(self, x: Tensor) -> torch.dtype:
        if self.image_type is not None:
            return self.image_type
        # Differs from the reference: EDM's half precision is float16; bfloat16, as in D2O, needs no loss scaling.
        return torch.bfloat16 if self.use_fp16 and x.is_cuda else torch.float32

    def _one_hot(self, labels: Tensor | None, x: Tensor) -> Tensor | None:
        """Return labels [B, K] float32; all zero where a conditional network is given none."""
        if self.label_dim == 0:
            return None
        if labels is None:
            return torch.zeros(1, self.label_dim, device=x.device)
        if labels.shape[-1] != self.label_dim:
            raise ValueError(f"labels are one-hot [B, {self.label_dim}] for this network, not {list(labels.shape)}")
        return labels.to(torch.float32).reshape(-1, self.label_dim)


def _check_described(augment_labels: Tensor | None, *, of: nn.Module) -> None:
    """Refuse a description of augmentations [B, augment_dim] that the network would not read."""
    taken = 0 if of.map_augment is None else of.map_augment.weight.shape[1]
    # Differs from the reference: there a network without augment_dim leaves the description unread, and learns to
    # draw augmented images.
    if augment_labels is not None and augment_labels.shape[1] != taken:
        raise ValueError(
            f"augmentations are described by {augment_labels.shape[1]} labels, the network takes {taken}: "
            f"give it augment_dim: {augment_labels.shape[1]}"
        )


def _levels(sigma: Tensor, x: Tensor) -> Tensor:
    """Return the noise levels as float32 beside `x`; one level spread over all rows is one, to be embedded once."""
    sigma = torch.as_tensor(sigma, device=x.device)
    is_spread = sigma.ndim == 1 and sigma.stride(0) == 0
    return (sigma[:1] if is_spread else sigma).to(torch.float32)
