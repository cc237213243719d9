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
from onestep.distributed import Ranks, gather
from onestep.features import Extractor
from onestep.features._arithmetic import computing
from onestep.files import sha256_of_file

# Images of every call of a network but the last, however they come: a convolution may round otherwise when it is given
# another number of them.
BATCH = 256
_PUBLISHED, _OURS = "arr_0", "pixels"  # the images in guided-diffusion's batches, and in our sample files


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureNetwork:
    """A network that images pass through.

    Attributes:
        extractor: The network.
        weights: Its weights; their digest is recorded, so that tables can refuse a mixture.
        options: The config block that names it.
    """

    extractor: Extractor
    weights: Path
    options: Mapping[str, Any]


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
    network = FeatureNetwork(extractor=extractor, weights=weights, options=options)
    write_all_features({output: network}, [torch.from_numpy(read_pixels(images))])


def write_all_features(networks: Mapping[Path, FeatureNetwork], batches: Iterable[Tensor]) -> None:
    """Write what `write_features` writes for several networks, through which each image passes once.

    Args:
        networks: The networks, by the .npz to write for each.
        batches: The images, uint8 [B, C, H, W] on the CPU; their sizes leave no trace.

    Raises:
        ValueError: A network takes no such images.
    """
    _write_passed(networks, pass_through([network.extractor for network in networks.values()], batches))


def write_features_of_ranks(
    networks: Mapping[Path, FeatureNetwork], batches: Iterable[Tensor], *, images: int, ranks: Ranks
) -> None:
    """Write the same files from images that several processes have made, each those at its `places`.

    Args:
        networks: The networks, by the .npz to write for each; rank 0 writes.
        batches: The images of this process, uint8 [B, C, H, W] on the CPU, in order.
        images: N, over all processes.
        ranks: This process among them.

    Raises:
        ValueError: A network takes no such images.
    """
    if ranks.world == 1:
        write_all_features(networks, batches)
        return
    pixels: list[Tensor] = []  # for the digest, which is over all images in order
    passed = pass_through([network.extractor for network in networks.values()], _kept(batches, pixels))
    shares = [places(images, rank=rank, world=ranks.world) for rank in range(ranks.world)]
    arrays = tuple(
        {name: _merged(torch.from_numpy(array), shares, ranks=ranks).numpy() for name, array in found.items()}
        for found in passed.arrays
    )
    whole = _merged(torch.cat(pixels), shares, ranks=ranks)
    if ranks.leads:
        digest = hashlib.sha256(whole.numpy().data).hexdigest()
        _write_passed(networks, Passed(arrays=arrays, images=images, pixels_sha256=digest))


def places(images: int, *, rank: int, world: int) -> list[int]:
    """Return which of N images, from 0, one process takes: whole calls of a network, dealt out in turn.

    So every call is of the same images as with one process, and rounds alike.

    Raises:
        ValueError: There are fewer calls than processes.
    """
    calls = -(-images // BATCH)
    if calls < world:
        raise ValueError(f"{images} images are {calls} calls of {BATCH}; use no more processes than that, not {world}")
    starts = range(rank * BATCH, images, world * BATCH)
    return [place for start in starts for place in range(start, min(start + BATCH, images))]


def _kept(batches: Iterable[Tensor], kept: list[Tensor]) -> Iterator[Tensor]:
    for batch in batches:
        kept.append(batch)
        yield batch


def _merged(rows: Tensor, shares: Sequence[Sequence[int]], *, ranks: Ranks) -> Tensor:
    """Return the rows of all processes, each at its place."""
    longest = max(map(len, shares))
    padded = rows.new_zeros(longest, *rows.shape[1:])
    padded[: len(rows)] = rows
    merged = rows.new_empty(sum(map(len, shares)), *rows.shape[1:])
    for share, received in zip(shares, gather(padded, ranks=ranks), strict=True):
        merged[list(share)] = received[: len(share)]
    return merged


def _write_passed(networks: Mapping[Path, FeatureNetwork], passed: Passed) -> None:
    for (output, network), arrays in zip(networks.items(), passed.arrays, strict=True):
        about = {
            "pixels_sha256": passed.pixels_sha256,
            "images": passed.images,
            "network": dict(network.options),
            "weights_sha256": sha256_of_file(network.weights),
        }
        write_arrays(output, arrays, about=about)


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
    for pixels in _regrouped(batches, size=BATCH):
        digest.update(pixels.numpy().data)
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
    """Yield the same rows in the same order, `size` at a time and at last fewer, each row's numbers as they are named.

    A convolution may round otherwise where the numbers lie in another order in memory, too; of grey images torch takes
    either order for contiguous, so they are copied.
    """
    waiting: list[Tensor] = []
    for batch in batches:
        waiting.append(batch)
        if sum(map(len, waiting)) >= size:
            *full, rest = _joined(waiting).tensor_split(_cuts(sum(map(len, waiting)), size=size))
            yield from map(_in_order, full)
            waiting = [rest] if len(rest) else []
    if waiting:
        yield _in_order(_joined(waiting))


def _in_order(pixels: Tensor) -> Tensor:
    return pixels.clone(memory_format=torch.contiguous_format)


def _cuts(count: int, *, size: int) -> list[int]:
    return [*range(size, count + 1, size)]


def _joined(batches: list[Tensor]) -> Tensor:
    """Return batches as one; where only some are in colour, grey is repeated."""
    channels = max(batch.shape[1] for batch in batches)
    return torch.cat([batch.expand(-1, channels, -1, -1) for batch in batches]) if len(batches) > 1 else batches[0]


def read_pixels(path: Path) -> np.ndarray:
    """Return the images of a sample file, a dataset archive or a batch of others as uint8 [N, C, H, W].

    Raises:
        ValueError: The file is none of them.
    """
    if path.suffix == ".zip":
        return ImageZip(source=path).read_all()[0]
    published = published_arrays(path, [_PUBLISHED, _OURS])
    arrays = read_arrays(path).arrays if published is None else published
    name = _OURS if published is None or (_OURS in arrays and _PUBLISHED not in arrays) else _PUBLISHED
    expected = "what `onestep sample` writes" if name == _OURS else "a batch of ADM"
    pixels = arrays.get(name)
    if pixels is None or pixels.dtype != np.uint8 or pixels.ndim != 4:
        found = "none" if pixels is None else f"{pixels.dtype} {list(pixels.shape)}"
        raise ValueError(f"{path}: holds no uint8 [N, H, W, C] array {name!r} (found {found}); expected {expected}")
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
