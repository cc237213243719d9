"""Images of a file through a feature network, into a file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from onestep.archive import published_arrays, read_arrays, write_arrays
from onestep.data.image_zip import ImageZip
from onestep.features import Extractor
from onestep.features._arithmetic import computing
from onestep.files import sha256_of_file

_BATCH = 256
_PUBLISHED = "arr_0"  # the images in guided-diffusion's reference batches


def write_features(
    extractor: Extractor, images: Path, *, weights: Path, options: Mapping[str, Any], output: Path
) -> None:
    """Write `features` [N, D] and, where the network classifies, `probabilities` [N, K] of the images of a file.

    Args:
        extractor: The feature network.
        images: Samples (.npz with `pixels` uint8 [N, H, W, C]), a dataset archive (.zip), or a published batch of
            real images (.npz with `arr_0`, guided-diffusion's).
        weights: The network's weights; their digest is recorded, so that tables can refuse a mixture.
        options: The config block that names the network.
        output: The .npz to write.

    Raises:
        ValueError: The images are of another kind, or not readable.
    """
    pixels = read_pixels(images)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    features, probabilities = [], []
    for start in range(0, len(pixels), _BATCH):
        with computing("float32", device=device):  # where the network does not choose another precision itself
            found = extractor(torch.from_numpy(pixels[start : start + _BATCH]).to(device))
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
    """Return the images of a sample file, a dataset archive or a published batch as uint8 [N, C, H, W].

    Raises:
        ValueError: The file is none of them.
    """
    if path.suffix == ".zip":
        return ImageZip(source=path).read_all()[0]
    published = published_arrays(path, [_PUBLISHED])
    name, expected = ("pixels", "what `onestep sample` writes") if published is None else (_PUBLISHED, "a batch of ADM")
    pixels = (read_arrays(path).arrays if published is None else published).get(name)
    if pixels is None or pixels.dtype != np.uint8 or pixels.ndim != 4:
        found = "none" if pixels is None else f"{pixels.dtype} {list(pixels.shape)}"
        raise ValueError(f"{path}: holds no uint8 [N, H, W, C] array {name!r} (found {found}); expected {expected}")
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
