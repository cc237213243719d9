"""Features of float images with a gradient, for losses; metrics have the publishers' path, which rounds to uint8.

Legend: B images, C H W an image, D feature width. Images are float32 in about [-1, 1], [B, C, H, W].

Differs from the metrics' path: images are neither rounded nor limited to [-1, 1], and networks of timm get an
antialiased bicubic resize in float32. Numbers of both paths are close and not equal, so a loss takes its reference
from this path, and tables take theirs from that of the metrics.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from onestep.arithmetic import half_products
from onestep.features.inception import InceptionNetwork, prepared


class FloatFeatures(nn.Module):
    """A frozen network as a function of float images to vectors, float32 [B, D].

    Attributes:
        recompute: Whether the backward pass computes the network's activations again, from the images.
    """

    recompute = False

    def __init__(self, network: nn.Module, *, channels: int, vectors: Callable[[Any, Tensor], Tensor]) -> None:
        """Freeze `network`; `vectors(network, images)` are those of images with `channels` channels."""
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.channels, self._vectors = channels, vectors

    def forward(self, images: Tensor) -> Tensor:
        """Return the vectors of images, grey ones repeated to the network's channels; ValueError: others than it has.

        Each depends on its own image alone.
        """
        if images.shape[1] not in (1, self.channels):
            raise ValueError(f"images: got {images.shape[1]} channels, expected {self.channels} for this network")
        images = images.expand(-1, self.channels, -1, -1)
        if self.recompute and torch.is_grad_enabled() and images.requires_grad:
            # In evaluation mode nothing in it is random.
            vectors = checkpoint(self._vectors, self.network, images, use_reentrant=False, preserve_rng_state=False)
        else:
            vectors = self._vectors(self.network, images)
        return vectors.to(torch.float32)


def classifier_features(classifier: nn.Module, *, channels: int) -> FloatFeatures:
    """Return the layer below the logits of a classifier of `onestep.classifiers`."""
    return FloatFeatures(classifier, channels=channels, vectors=lambda network, images: network(images).features)


def inception_features(network: InceptionNetwork) -> FloatFeatures:
    """Return the pooled layer of the Inception network of 2015-12-05, with TensorFlow's resize and FID's scaling."""
    return FloatFeatures(network, channels=3, vectors=lambda own, images: own.pool(prepared((images + 1) * 127.5)))


def timm_features(model: Any, *, resolution: int | None = None) -> FloatFeatures:
    """Return the pooled layer below the logits of a network of timm, as timm pools it: its `forward_head`.

    Images are resized to `resolution`, by default to the size of its weights, and normalised as its weights need it.
    Less is cheaper and another function. ValueError: the network has images of one size alone.
    """
    model.reset_classifier(0)
    config = model.pretrained_cfg
    channels, *size = config["input_size"]
    if resolution is not None and config.get("fixed_input_size") and size != [resolution, resolution]:
        raise ValueError(f"resolution: got {resolution}, expected {size[0]}, the only one of {config['architecture']}")
    size = size if resolution is None else [resolution, resolution]
    mean, std = (torch.tensor(config[key]).reshape(-1, 1, 1) for key in ("mean", "std"))

    def vectors(network: nn.Module, images: Tensor) -> Tensor:
        shown = resized(images, size=(size[0], size[1]))
        return network(((shown + 1) / 2 - mean.to(shown)) / std.to(shown))

    return FloatFeatures(model, channels=channels, vectors=vectors)


def resized(images: Tensor, *, size: tuple[int, int]) -> Tensor:
    """Return images [B, C, *size]: torch's antialiased bicubic resize as one product for each side.

    Products have the same gradient in each call on a GPU; torch's own resize adds in any order there.
    """
    if images.shape[-2:] == size:
        return images
    rows, columns = (_weights(*sides, like=images) for sides in zip(images.shape[-2:], size, strict=True))
    with half_products(images.device, enabled=False):  # autocast would round the weights
        return rows @ images @ columns.t()


def _weights(before: int, after: int, *, like: Tensor) -> Tensor:
    """Return the weight of each source pixel in each pixel of a side [after, before]."""
    with torch.device("cpu"):
        unit = torch.eye(before)[None, None]
        weights = F.interpolate(unit, size=(after, before), mode="bicubic", antialias=True, align_corners=False)
    return weights[0, 0].to(like)
