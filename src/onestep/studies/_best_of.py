"""Scores of images by a ratio network, and the choice of the best of several candidates.

Legend: N images, B of them at a time, C H W an image, K classes, G groups of candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onestep.archive import read_arrays
from onestep.arithmetic import computing, default_device
from onestep.checkpoints.snapshot import read_snapshot
from onestep.data import to_images
from onestep.evaluation.extraction import read_pixels
from onestep.progress import patient
from onestep.ratios import build_ratio


def load_ratio(path: Path) -> nn.Module:
    """Load the ratio network of a finished run onto the device of this process, in evaluation mode.

    ValueError: The file is damaged, or contains another network.
    """
    snapshot = read_snapshot(path)
    try:
        network = build_ratio(snapshot.config)
        network.load_state_dict(snapshot.state_dict, strict=True)
    except (KeyError, RuntimeError) as error:
        found = " ".join(str(error).split())[:200]
        raise ValueError(f"{path}: got another network than a ratio ({found}). Fix: train the run again") from error
    return network.to(default_device()).eval().requires_grad_(False)


def read_candidates(path: Path) -> tuple[Tensor, np.ndarray]:
    """Return the images of a file of samples, uint8 [N, C, H, W], and their classes, int64 [N], -1 without classes."""
    labels = read_arrays(path, ("labels",)).arrays["labels"]
    return torch.from_numpy(read_pixels(path)), labels


def scores(
    network: nn.Module,
    pixels: Tensor,
    labels: np.ndarray,
    *,
    levels: Sequence[float],
    weights: Sequence[float],
    seed: int,
    batch: int,
    label: str,
) -> np.ndarray:
    """Return the weighted mean of l(x + sigma noise, sigma) over the noise levels for each image x, float64 [N].

    Every image has the same noise, one for each level, so that scores differ by the images alone. ValueError: The
    network is for other images, or one of them has a score that is not finite.
    """
    device, classes = next(network.parameters()).device, int(getattr(network, "label_dim", 0))
    random = torch.Generator().manual_seed(seed)
    noises = torch.randn((len(levels), *pixels.shape[1:]), generator=random).to(device)
    found = []
    with (
        computing("float32", device=device),
        patient(name=label, total=len(pixels)) as progress,
    ):
        for start in range(0, len(pixels), batch):
            rows = slice(start, start + batch)
            images = to_images(pixels[rows]).to(device)
            condition = None
            if classes:
                condition = F.one_hot(torch.from_numpy(labels[rows]), classes).to(device, torch.float32)
            total = torch.zeros(len(images), dtype=torch.float64, device=device)
            for level, weight, noise in zip(levels, weights, noises, strict=True):
                sigma = torch.full((len(images),), level, device=device)
                total += weight * network(images + level * noise, sigma, condition).double()
            found.append(total.cpu())
            progress.update(len(images))
    result = torch.cat(found) / sum(weights)
    if not torch.isfinite(result).all():
        raise ValueError(f"{label}: got scores that are NaN or infinite, expected finite ones. Fix: train it again")
    return result.numpy()


def groups(labels: np.ndarray, *, size: int) -> np.ndarray:
    """Return the indices of groups of `size` candidates of one class, in the order of the images, int64 [G, size].

    Images that do not fill a group are left out, so the classes of the groups hardly depend on chance.
    """
    found: list[Any] = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        found.append(members[: len(members) // size * size].reshape(-1, size))
    return np.concatenate(found)


def best(candidates: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return of each group of candidates [G, n] the index with the highest of `values` [N], int64 [G]."""
    return candidates[np.arange(len(candidates)), values[candidates].argmax(axis=1)]


def any_of(candidates: np.ndarray, *, seed: int) -> np.ndarray:
    """Return a random index of each group of candidates [G, n], int64 [G]."""
    chosen = np.random.default_rng(seed).integers(candidates.shape[1], size=len(candidates))
    return candidates[np.arange(len(candidates)), chosen]
