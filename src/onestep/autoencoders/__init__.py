"""The contract of a codec: the map between pixels and the space in which the networks train and sample.

Legend: `pixels` are uint8 [B, C, H, W]; `images` are float32 [B, C', H', W'], the input of denoisers, in pixel space
about [-1, 1]. `pictures` are float32 [B, C, H, W] in [-1, 1] up to overshoot, what pixels show without quantization.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeGuard

from torch import Tensor, nn


class Codec(Protocol):
    """The class of each file in this folder. Its constructor gets `weights`, the file of its network, if it has one."""

    def encode(self, pixels: Tensor) -> Tensor:
        """Return pixels as images, on the same device."""
        ...

    def decode(self, images: Tensor) -> Tensor:
        """Return images, float32 or float64, as pixels, on the same device."""
        ...


class LatentCodec(Codec, Protocol):
    """A codec with a network, whose images are latents that are drawn from a posterior for each image.

    Attributes:
        network: Frozen; it follows the device of what is encoded or decoded.
        channels: C of pixels and pictures.
        latent_channels: C' of images.
        factor: H / H'.
        draws: Whether images are drawn from the posterior in training; else they are its mean.
        origin: What the moments depend on, as JSON; archives of moments record it.
    """

    network: nn.Module
    channels: int
    latent_channels: int
    factor: int
    draws: bool
    origin: Mapping[str, Any]

    def moments(self, pixels: Tensor) -> Tensor:
        """Return mean and standard deviation of the posterior, float32 [B, 2 C', H', W']."""
        ...

    def drawn(self, moments: Tensor, normal: Tensor | None) -> Tensor:
        """Return images of moments [B, 2 C', H', W'], with standard normal numbers [B, C', H', W'] or as the mean."""
        ...

    def pictures(self, images: Tensor) -> Tensor:
        """Return images as pictures, differentiable with respect to the images."""
        ...


def is_latent(codec: Any) -> TypeGuard[LatentCodec]:
    """Return whether a codec is one of latents, by its method `moments`."""
    return hasattr(codec, "moments")
