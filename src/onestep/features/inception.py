"""Features of FID, Inception score, sFID and ADM's precision and recall: the Inception network of 2015-12-05."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from torch import Tensor

from onestep.features import Features, computing
from onestep.features._inception_network import SIZE, read_inception
from onestep.features._networks import resized_as_in_tensorflow, run_in_parts

__all__ = ["InceptionFeatures"]


class InceptionFeatures:
    """The features of EDM's FID and of guided-diffusion's evaluator; the resize to 299 x 299 is part of the network.

    `pool` is the pooled layer of width 2,048 (FID, precision and recall), with the class probabilities of the Inception
    score, computed without the bias of the logits as in guided-diffusion. `spatial` is a part of an inner feature map,
    of width 2,023 (sFID, arXiv:2103.03841), without probabilities.
    """

    def __init__(
        self,
        *,
        weights: Path,
        layer: Literal["pool", "spatial"] = "pool",
        precision: Literal["float32", "tf32", "bfloat16"] = "float32",
    ) -> None:
        """Load torch-fidelity's `weights-inception-2015-12-05-6726825d.pth`, or NVIDIA's `.pkl`."""
        self.network = read_inception(weights)
        self.layer, self.precision = layer, precision

    def __call__(self, pixels: Tensor) -> Features:
        """Extract features [B, 2048] and probabilities [B, 1008] of pixels, uint8 [B, 3 or 1, H, W].

        With `spatial`, features [B, 2023] only; see `onestep.features.Extractor`.
        """
        network = self.network.to(pixels.device)
        layer = network.pool if self.layer == "pool" else network.spatial
        features = run_in_parts(layer, pixels, prepare=_prepared, precision=self.precision)
        if self.layer == "spatial":
            return Features(features=features, probabilities=None)
        with computing("float32", device=pixels.device):
            return Features(features=features, probabilities=network.output(features).softmax(dim=1))


def _prepared(pixels: Tensor) -> Tensor:
    return (resized_as_in_tensorflow(pixels, size=SIZE) - 128) / 128
