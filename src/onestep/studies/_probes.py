"""Linear probes: how well the class of a noisy image is read off the output of each block of a denoiser.

Legend: N images, L blocks, S noise levels, C channels of a block, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from onestep.data.image_zip import ImageZip
from onestep.studies import _hooks

if TYPE_CHECKING:
    from torch import Tensor

    from onestep.networks import Preconditioned
    from onestep.studies._hooks import Block

PENALTY = 0.01
"""Of the squared weights of a probe, for standardised features and a loss that is a mean over images."""

HELD_OUT = 3
"""Every third image is held out."""


def accuracies(
    network: Preconditioned, blocks: Sequence[Block], *, archive: Path, images: int, sigmas: Sequence[float], batch: int
) -> np.ndarray:
    """Return the accuracy of a probe on held-out images, for each block and noise level, float64 [L, S].

    The features of an image are the means over pixels of a block's output for image + sigma noise, with the noise of
    the seed of the image's number. A conditional network gets a condition of zeros, which has no class.

    Raises:
        ValueError: The dataset has no classes, fewer images, or images of another shape.
    """
    data = ImageZip(source=archive)
    if data.classes < 2:
        raise ValueError(f"{archive}: got images without classes, expected classes for probes")
    clean, _ = _hooks.real_images(archive, network, count=images)
    labels = data.labels()[_hooks.evenly(images, of=len(data))]
    condition = torch.zeros(images, network.label_dim) if network.label_dim else None
    found = np.empty((len(blocks), len(sigmas)))
    for column, sigma in enumerate(sigmas):
        pooled = _Pooled(blocks=len(blocks))
        _hooks.at_levels(
            network,
            blocks,
            levels=[sigma],
            seeds=range(images),
            batch=batch,
            see=pooled.see,
            images=clean,
            condition=condition,
        )
        found[:, column] = [probe(features, labels, classes=data.classes) for features in pooled.features()]
    return found


class _Pooled:
    """Means over pixels of the outputs of blocks, batch by batch."""

    def __init__(self, *, blocks: int) -> None:
        self._parts: list[list[np.ndarray]] = [[] for _ in range(blocks)]

    def see(self, step: int, kind: str, block: int, value: Tensor) -> None:
        """Take what `onestep.studies._hooks` shows."""
        if kind == "output":
            means = _hooks.as_map(value).flatten(2).mean(dim=2, dtype=torch.float64)
            self._parts[block].append(means.float().cpu().numpy())

    def features(self) -> list[np.ndarray]:
        """Return the features of each block, float32 [N, C]."""
        return [np.concatenate(parts) for parts in self._parts]


def probe(features: np.ndarray, labels: np.ndarray, *, classes: int) -> float:
    """Return the share of held-out images whose class a linear probe finds.

    Ridge regression of one-hot classes [N, K] on features [N, C], each standardised on the images that are not held
    out; the class is that of the largest output.
    """
    held_out = np.arange(len(labels)) % HELD_OUT == HELD_OUT - 1
    wanted = np.eye(classes)[labels[~held_out]]
    trained = features[~held_out].astype(np.float64)
    centre, scale = trained.mean(axis=0), trained.std(axis=0)
    moving = scale > 1e-12 * np.abs(centre).max(initial=1e-300)
    inputs = (trained - centre)[:, moving] / scale[moving]
    gram = inputs.T @ inputs / len(inputs) + PENALTY * np.eye(inputs.shape[1])
    weights = np.linalg.solve(gram, inputs.T @ (wanted - wanted.mean(axis=0)) / len(inputs))
    tested = (features[held_out].astype(np.float64) - centre)[:, moving] / scale[moving]
    chosen = (tested @ weights + wanted.mean(axis=0)).argmax(axis=1)
    return float((chosen == labels[held_out]).mean())
