"""Images of a file through a feature network, into a file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from onestep.archive import read_arrays, write_arrays
from onestep.data.image_zip import ImageZip
from onestep.features import Extractor
from onestep.files import sha256_of_file

_BATCH = 256


def write_features(
    extractor: Extractor, images: Path, *, weights: Path, options: Mapping[str, Any], output: Path
) -> None:
    """Write `features` [N, D] and, where the network classifies, `probabilities` [N, K] of the images of a file.

    Args:
        extractor: The feature network.
        images: Samples (.npz with `pixels` uint8 [N, H, W, C]) or a dataset archive (.zip).
        weights: The network's weights; their digest is recorded, so that tables can refuse a mixture.
        options: The config block that names the network.
        output: The .npz to write.

    Raises:
        ValueError: The images are of another kind, or not readable.
    """
    pixels = read_pixels(images)
    features, probabilities = [], []
    for start in range(0, len(pixels), _BATCH):
        found = extractor(torch.from_numpy(pixels[start : start + _BATCH]))
        features.append(found.features.cpu().numpy())
        if found.probabilities is not None:
            probabilities.append(found.probabilities.cpu().numpy())
    arrays = {"features": np.concatenate(features)}
    if probabilities:
        arrays["probabilities"] = np.concatenate(probabilities)
    digest = hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()
    about = {
        "pixels_sha256": digest,
        "images": len(pixels),
        "network": dict(options),
        "weights_sha256": sha256_of_file(weights),
    }
    write_arrays(output, arrays, about=about)


def read_pixels(path: Path) -> np.ndarray:
    """Return the images of a sample file or a dataset archive as uint8 [N, C, H, W].

    Raises:
        ValueError: The file is neither.
    """
    if path.suffix == ".zip":
        return ImageZip(source=path).read_all()[0]
    pixels = read_arrays(path).arrays.get("pixels")
    if pixels is None or pixels.dtype != np.uint8 or pixels.ndim != 4:
        raise ValueError(f"{path}: holds no uint8 [N, H, W, C] array 'pixels'; expected what `onestep sample` writes")
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
