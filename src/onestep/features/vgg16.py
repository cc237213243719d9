"""Features of improved precision and recall as first published: the second hidden layer of VGG-16's classifier."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from onestep.features import Features
from onestep.features._arithmetic import Precision, computing
from onestep.features._pixels import IMAGENET_MEAN, IMAGENET_STD, normalised, resized_as_in_tensorflow, rgb_parts
from onestep.features._timm_networks import Weights, load_timm_network

__all__ = ["VggFeatures"]

_SIZE = 224


class VggFeatures:
    """VGG-16 (arXiv:1409.1556) after the second fully connected layer, 4,096 wide, what is above zero.

    The convention of StyleGAN's and torch-fidelity's precision and recall (arXiv:1904.06991): the images, resized to
    224 x 224 as torch-fidelity does, without smoothing, then normalised for torchvision's weights.
    """

    def __init__(self, *, weights: Path, precision: Precision = "float32") -> None:
        """Read the network.

        Args:
            weights: torchvision's `vgg16-397923af.pth`, or `timm/vgg16.tv_in1k`.
            precision: float32 is the reported path; numbers by another are marked.

        Raises:
            ValueError: The file does not hold the network.
        """
        self._network = load_timm_network(weights, name="vgg16", convert=_without_classes, options={"num_classes": 0})
        self._precision = precision

    def __call__(self, pixels: Tensor) -> Features:
        """Extract features [B, 4096] of pixels, uint8 [B, 3 or 1, H, W], on the pixels' device.

        Raises:
            ValueError: The pixels are not uint8, or of another shape.
        """
        self._network.to(pixels.device)
        features = torch.cat([self._some(part) for part in rgb_parts(pixels)])
        return Features(features=features, probabilities=None)

    def _some(self, pixels: Tensor) -> Tensor:
        images = normalised(resized_as_in_tensorflow(pixels, size=_SIZE), mean=IMAGENET_MEAN, std=IMAGENET_STD)
        with computing(self._precision, device=pixels.device):
            return self._network(images).to(torch.float32)


def _without_classes(weights: Weights, network: nn.Module) -> Weights:
    """Return the weights in timm's shapes, without the layer of the classes.

    timm has the fully connected layers of torchvision's file as convolutions, the first over the last 7 x 7 maps.
    """
    renamed = {"classifier.0.": "pre_logits.fc1.", "classifier.3.": "pre_logits.fc2."}
    wanted = {name: tensor.shape for name, tensor in network.state_dict().items()}
    converted = {}
    for name, tensor in weights.items():
        if not name.startswith(("head.", "classifier.6.")):
            for old, new in renamed.items():
                name = name.replace(old, new)
            fits = name in wanted and wanted[name].numel() == tensor.numel()
            converted[name] = tensor.reshape(wanted[name]) if fits else tensor
    return converted
