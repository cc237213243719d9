"""Images through feature networks, into files: those of a file, or those that are generated meanwhile."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onestep.archive import published_arrays, read_arrays, write_arrays
from onestep.data.image_zip import ImageZip
from onestep.features import Extractor
from onestep.features._arithmetic import computing
from onestep.files import sha256_of_file

# Images of every call of a network but the last, however they come: a convolution may round otherwise when it is given
# another number of them.
_BATCH = 256
_PUBLISHED = "arr_0"  # the images in guided-diffusion's reference batches


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureNetwork:
    """A network that images pass through, and where its features go.

    Attributes:
        extractor: The network.
        weights: Its weights; their digest is recorded, so that tables can refuse a mixture.
        options: The config block that names it.
        output: The .npz to write.
    """

    extractor: Extractor
    weights: Path
    options: Mapping[str, Any]
    output: Path


@dataclass(frozen=True, kw_only=True, eq=False)
class Passed:
    """What is known of images after they have passed.

    Attributes:
        arrays: For each network, `features` [N, D] and, where it classifies, `probabilities` [N, K].
        images: N.
        pixels_sha256: Digest of the pixels, [N, C, H, W] in this order.
    """

    arrays: tuple[Mapping[str, np.ndarray], ...]
    images: int
    pixels_sha256: str


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
    network = FeatureNetwork(extractor=extractor, weights=weights, options=options, output=output)
    write_all_features([network], [torch.from_numpy(read_pixels(images))])


def write_all_features(networks: Sequence[FeatureNetwork], batches: Iterable[Tensor]) -> None:
    """Write what `write_features` writes for several networks, through which each image passes once.

    Args:
        networks: The networks and their files.
        batches: The images, uint8 [B, C, H, W] on the CPU; their sizes leave no trace.

    Raises:
        ValueError: A network takes no such images.
    """
    passed = pass_through([network.extractor for network in networks], batches)
    for network, arrays in zip(networks, passed.arrays, strict=True):
        about = {
            "pixels_sha256": passed.pixels_sha256,
            "images": passed.images,
            "network": dict(network.options),
            "weights_sha256": sha256_of_file(network.weights),
        }
        write_arrays(network.output, arrays, about=about)


def pass_through(extractors: Sequence[Extractor], batches: Iterable[Tensor]) -> Passed:
    """Pass images through feature networks; only features stay in memory.

    Args:
        extractors: The networks.
        batches: The images, uint8 [B, C, H, W] on the CPU; their sizes leave no trace.

    Raises:
        ValueError: There are no images, or a network takes no such images.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    digest, images = hashlib.sha256(), 0
    found: list[list[dict[str, np.ndarray]]] = [[] for _ in extractors]
    for pixels in _regrouped(batches, size=_BATCH):
        digest.update(pixels.contiguous().numpy().data)
        images += len(pixels)
        shown = pixels.to(device)
        for extractor, parts in zip(extractors, found, strict=True):
            parts.append(_arrays(extractor, shown))
    if not images:
        raise ValueError("found no images, expected at least one")
    arrays = tuple({name: np.concatenate([part[name] for part in parts]) for name in parts[0]} for parts in found)
    return Passed(arrays=arrays, images=images, pixels_sha256=digest.hexdigest())


def _arrays(extractor: Extractor, pixels: Tensor) -> dict[str, np.ndarray]:
    """Return what a network says of pixels on its device."""
    with computing("float32", device=pixels.device):  # where the network does not choose another precision itself
        found = extractor(pixels)
    tensors = {"features": found.features, "probabilities": found.probabilities}
    return {name: tensor.cpu().numpy() for name, tensor in tensors.items() if tensor is not None}


def _regrouped(batches: Iterable[Tensor], *, size: int) -> Iterator[Tensor]:
    """Yield the same rows in the same order, `size` at a time, the last ones as they are."""
    waiting: list[Tensor] = []
    for batch in batches:
        waiting.append(batch)
        if sum(map(len, waiting)) >= size:
            *full, rest = _joined(waiting).tensor_split(_cuts(sum(map(len, waiting)), size=size))
            yield from full
            waiting = [rest]
    rest = _joined(waiting) if waiting else ()
    if len(rest):
        yield rest


def _cuts(count: int, *, size: int) -> list[int]:
    return [*range(size, count + 1, size)]


def _joined(batches: list[Tensor]) -> Tensor:
    """Return batches as one; where only some are in colour, grey is repeated."""
    channels = max(batch.shape[1] for batch in batches)
    return torch.cat([batch.expand(-1, channels, -1, -1) for batch in batches]) if len(batches) > 1 else batches[0]


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
