"""Features of the first improved precision and recall: the second hidden layer of VGG-16's classifier."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from onestep.features import Features
from onestep.features._networks import Weights, load_timm_network, normalised, resized_as_in_tensorflow, run_in_parts

__all__ = ["VggFeatures"]

_SIZE = 224


class VggFeatures:
    """VGG-16 (arXiv:1409.1556) after the second fully connected layer and its ReLU, of width 4,096.

    The convention of StyleGAN's and torch-fidelity's precision and recall (arXiv:1904.06991): images are resized to
    224 x 224 as in torch-fidelity, without smoothing, then normalised for torchvision's weights.
    """

    def __init__(self, *, weights: Path, precision: Literal["float32", "tf32", "bfloat16"] = "float32") -> None:
        """Load torchvision's `vgg16-397923af.pth`, or `timm/vgg16.tv_in1k`."""
        self.network = load_timm_network(weights, name="vgg16", convert=_without_classifier, num_classes=0)
        self.precision = precision

    def __call__(self, pixels: Tensor) -> Features:
        """Extract features [B, 4096] of pixels, uint8 [B, 3 or 1, H, W]; see `onestep.features.Extractor`."""
        network = self.network.to(pixels.device)
        return Features(run_in_parts(network, pixels, prepare=_prepared, precision=self.precision), None)


def _prepared(pixels: Tensor) -> Tensor:
    return normalised(resized_as_in_tensorflow(pixels, size=_SIZE))


def _without_classifier(weights: Weights, network: Any) -> Weights:
    """Return the weights in timm's shapes, without the layer of the logits.

    timm has the fully connected layers of torchvision's file as convolutions, the first over the last 7 x 7 maps.
    """
    expected = {name: tensor.shape for name, tensor in network.state_dict().items()}
    converted = {}
    for name, tensor in weights.items():
        if not name.startswith(("head.", "classifier.6.")):
            name = name.replace("classifier.0.", "pre_logits.fc1.").replace("classifier.3.", "pre_logits.fc2.")
            fits = name in expected and expected[name].numel() == tensor.numel()
            converted[name] = tensor.reshape(expected[name]) if fits else tensor
    return converted
