"""The frozen networks a discriminator looks through, and what makes them frozen."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onestep.checkpoints.snapshot import read_snapshot
from onestep.classifiers import build_classifier


class Backbone(nn.Module):
    """A frozen network as a discriminator uses it: images in, four inner feature maps out.

    State dict: `network.` and the network's own names.

    Attributes:
        tap_channels: Channels of the four taps, fine to coarse.
        strides: Pixels of the image, each way, that one pixel of each tap stands for.
        nominal_strides: Those for which heads are laid out; the reference lays them out alike for all networks.
        token_width: Of a vision transformer: channels of its taps, which are token maps of one size and are yet to be
            read out into `tap_channels` at `strides`. None where the taps are that already.
        image_size: The one size of image that it takes; None where it takes any.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        channels: int,
        tap_channels: tuple[int, ...],
        strides: tuple[float, ...],
        mean: tuple[float, ...],
        std: tuple[float, ...],
        nominal_strides: tuple[float, ...] | None = None,
        token_width: int | None = None,
        image_size: int | None = None,
    ) -> None:
        """Freeze `network`.

        Args:
            network: Takes normalised images, returns the taps, fine to coarse.
            channels: Channels it takes; grey images are repeated to as many.
            tap_channels: See the class.
            strides: See the class.
            mean: What it was trained to have subtracted from images in [0, 1], one number a channel.
            std: What it was trained to have them divided by thereafter.
            nominal_strides: See the class; default: `strides`.
            token_width: See the class.
            image_size: See the class.
        """
        super().__init__()
        self.network = freeze(network)
        self.channels, self.tap_channels, self.strides = channels, tap_channels, strides
        self.nominal_strides = strides if nominal_strides is None else nominal_strides
        self.token_width, self.image_size = token_width, image_size
        means, stds = (torch.tensor(values).reshape(-1, 1, 1) for values in (mean, std))
        # ((x + 1) / 2 - mean) / std of images x in [-1, 1], in the form that is exactly x for mean = std = 0.5.
        self.register_buffer("scale", 0.5 / stds, persistent=False)
        self.register_buffer("offset", (0.5 - means) / stds, persistent=False)

    def forward(self, images: Tensor, *, size: int | None = None) -> tuple[Tensor, ...]:
        """Return the taps of images [B, C, H, W] in [-1, 1], which are resized to `size` x `size` where it is given."""
        images = self._as_trained(images) * self.scale + self.offset
        # After the normalisation, as in the reference. The two commute, but at a kink of the network rounding decides.
        if size is not None and images.shape[-2:] != (size, size):
            images = F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)
        return self.network(images)

    def _as_trained(self, images: Tensor) -> Tensor:
        if images.shape[1] not in (1, self.channels):
            raise ValueError(f"images have {images.shape[1]} channels, but the backbone looks at {self.channels}")
        return images.expand(-1, self.channels, -1, -1)


class ClassifierTaps(nn.Module):
    """A classifier of `onestep.classifiers`, asked for its taps."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the four taps of images [B, C, H, W] in [-1, 1]."""
        return self.classifier(images).taps


def load_backbone(path: Path) -> Backbone:
    """Read a classifier's snapshot and freeze it as a backbone.

    Raises:
        ValueError: The file is not a snapshot, or not one of a classifier.
    """
    snapshot = read_snapshot(path)
    classifier = build_classifier(snapshot.config)
    classifier.load_state_dict(snapshot.state_dict)
    return classifier_backbone(classifier, channels=snapshot.config["channels"])


def classifier_backbone(classifier: nn.Module, *, channels: int) -> Backbone:
    """Freeze a classifier of images with `channels` as a backbone."""
    return Backbone(
        ClassifierTaps(classifier),
        channels=channels,
        tap_channels=classifier.tap_channels,
        strides=(1, 2, 4, 8),
        mean=(0.5,) * channels,
        std=(0.5,) * channels,
    )


def freeze(module: nn.Module, *, persistent: bool = True) -> nn.Module:
    """Turn all parameters of `module` into buffers of the same names, and put it into evaluation mode.

    A buffer cannot be trained by mistake: it is in no `parameters()`, so no optimizer, no `requires_grad_` and no
    gradient average reaches it. It still moves with `.to(...)` and, where `persistent`, is in the state dict.
    """
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            delattr(part, name)
            part.register_buffer(name, parameter.detach(), persistent=persistent)
    return module.eval()
