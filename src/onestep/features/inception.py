"""Features of FID, Inception score, sFID and ADM's precision and recall: the Inception network of 2015-12-05."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from onestep.features import Features
from onestep.features._arithmetic import Precision, computing
from onestep.features._inception_network import SIZE, read_inception
from onestep.features._pixels import resized_as_in_tensorflow, rgb_parts

__all__ = ["InceptionFeatures"]


class InceptionFeatures:
    """What EDM's FID and guided-diffusion's evaluator look at; the resize to 299 x 299 belongs to the network.

    `pool` are the 2,048 averages before the classes (FID, precision and recall), with the class probabilities of the
    Inception score, for which the classes' bias is left out, as in guided-diffusion. `spatial` are 2,023 numbers of an
    inner map (sFID, arXiv:2103.03841), without probabilities.
    """

    def __init__(
        self, *, weights: Path, layer: Literal["pool", "spatial"] = "pool", precision: Precision = "float32"
    ) -> None:
        """Read the network.

        Args:
            weights: torch-fidelity's `weights-inception-2015-12-05-6726825d.pth`, or NVIDIA's `.pkl`.
            layer: Which features.
            precision: float32 is the reported path; numbers by another are marked.

        Raises:
            ValueError: The file does not hold the network.
        """
        self._network = read_inception(weights)
        self._layer, self._precision = layer, precision

    def __call__(self, pixels: Tensor) -> Features:
        """Extract features of pixels, uint8 [B, 3 or 1, H, W], on the pixels' device.

        Returns:
            `features` [B, 2048] with `probabilities` [B, 1008], or [B, 2023] with none.

        Raises:
            ValueError: The pixels are not uint8, or of another shape.
        """
        self._network.to(pixels.device)
        features = torch.cat([self._some(part) for part in rgb_parts(pixels)])
        if self._layer == "spatial":
            return Features(features=features, probabilities=None)
        with computing("float32", device=pixels.device):
            return Features(features=features, probabilities=self._network.output(features).softmax(dim=1))

    def _some(self, pixels: Tensor) -> Tensor:
        images = (resized_as_in_tensorflow(pixels, size=SIZE) - 128) / 128
        look = self._network.pool if self._layer == "pool" else self._network.spatial
        with computing(self._precision, device=pixels.device):
            return look(images).to(torch.float32)
