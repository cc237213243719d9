"""Feature extraction: images through feature networks, into one .npz per network.

Legend: N images, C H W an image, D feature width, K classes.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onestep import components
from onestep.archive import array_names, published_arrays, read_arrays, write_arrays
from onestep.arithmetic import ARITHMETIC, Precision, computing, default_device, entry, record_of
from onestep.checkpoints.digests import checked, known_digest
from onestep.data.image_zip import ImageZip
from onestep.features import Extractor
from onestep.files import regular_file, sha256_of_file
from onestep.results import identity_at

# Images per call of a network, except for the last call: a convolution may round differently for another number.
BATCH = 256
TENSORS = (".pt", ".pth")  # files of torch.save
_USED = frozenset({"about", "arr_0", "pixels", "mu", "mu_s"})  # arrays by which an .npz is recognized
_PUBLISHED, _OURS = "arr_0", "pixels"  # the images in the batches of guided-diffusion, and in sample files


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureNetwork:
    """A feature extractor with its identity: its config block, its name there if it has one, and its weights."""

    extractor: Extractor
    weights: Path
    options: Mapping[str, Any]
    name: str | None = None

    def about(self) -> dict[str, Any]:
        """Return the identity as it is recorded; features of different weights are not compared."""
        return {"features": self.name, "network": dict(self.options), "weights_sha256": sha256_of_file(self.weights)}

    def arithmetic(self) -> dict[str, str]:
        """Return the record of its arithmetic on this machine."""
        precision: Precision = self.options.get("precision", "float32")
        return record_of(precision, device=default_device())


@dataclass(frozen=True, kw_only=True, eq=False)
class ExtractedFeatures:
    """The features of a set of images."""

    arrays: tuple[Mapping[str, np.ndarray], ...]  # per network `features` [N, D] and, if it classifies, `probabilities`
    images: int
    pixels_sha256: str  # digest of the pixels, uint8 [N, C, H, W]


def feature_network(block: Mapping[str, Any], *, weights: Path, name: str | None) -> FeatureNetwork:
    """Return the feature network of a config block."""
    extractor = components.build("features", block, weights=weights)
    return FeatureNetwork(extractor=extractor, weights=weights, options=block, name=name)


def write_features(
    network: FeatureNetwork, images: Path, *, output: Path, subject: Mapping[str, str] | None = None
) -> None:
    """Write `features` [N, D] and, if the network classifies, `probabilities` [N, K] of a file for `read_pixels`.

    `subject` is the identity of real images, `{"dataset": name}` or `{"input": name}`; samples contain their own.
    ValueError: The file is not one of these, or the images do not fit the network.
    """
    extracted = extract([network.extractor], [torch.from_numpy(read_pixels(images))])
    archive = {"archive_sha256": known_digest(images)} if images.suffix == ".zip" else {}
    subject = subject_of(images) if subject is None else subject
    write_extracted({output: network}, extracted, subject=subject, origin=archive, sampled=sampled_by(images))


def write_extracted(
    networks: Mapping[Path, FeatureNetwork],
    extracted: ExtractedFeatures,
    *,
    subject: Mapping[str, str],
    origin: Mapping[str, str] = MappingProxyType({}),
    sampled: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Write the features of images, whose identity is `subject`, for each network in their order.

    `origin` has the digest of the images' archive, if they have one; `sampled` is the record of the arithmetic in which
    they were generated.
    """
    for (output, network), arrays in zip(networks.items(), extracted.arrays, strict=True):
        about = {"subject": dict(subject), "images": extracted.images, "pixels_sha256": extracted.pixels_sha256}
        about |= {**origin, **entry(sampled, key="sampled"), **entry(network.arithmetic())}
        write_arrays(output, arrays, about={**about, **network.about()})


def extract(extractors: Sequence[Extractor], batches: Iterable[Tensor]) -> ExtractedFeatures:
    """Extract features of images, uint8 [B, C, H, W] on the CPU, in batches of any size. ValueError: None or unfit."""
    device = default_device()
    digest, images = hashlib.sha256(), 0
    found: list[list[dict[str, np.ndarray]]] = [[] for _ in extractors]
    for rows in _regrouped(batches, size=BATCH):
        # A convolution may round differently for another memory layout, too. For grey images torch regards both layouts
        # as contiguous, hence the copy.
        pixels = rows.clone(memory_format=torch.contiguous_format)
        digest.update(pixels.numpy().data)
        images += len(pixels)
        on_device = pixels.to(device)
        for extractor, parts in zip(extractors, found, strict=True):
            parts.append(_arrays(extractor, on_device))
    if not images:
        raise ValueError("found no images, expected at least one")
    arrays = tuple({name: np.concatenate([part[name] for part in parts]) for name in parts[0]} for parts in found)
    return ExtractedFeatures(arrays=arrays, images=images, pixels_sha256=digest.hexdigest())


def _arrays(extractor: Extractor, pixels: Tensor) -> dict[str, np.ndarray]:
    with computing("float32", device=pixels.device):  # unless the network selects another precision
        found = extractor(pixels)
    tensors = {"features": found.features, "probabilities": found.probabilities}
    return {name: tensor.cpu().numpy() for name, tensor in tensors.items() if tensor is not None}


def _regrouped(batches: Iterable[Tensor], *, size: int) -> Iterator[Tensor]:
    """Yield the same rows in the same order in batches of `size`; the last one may be smaller."""
    waiting: list[Tensor] = []
    for batch in batches:
        waiting.append(batch)
        if sum(map(len, waiting)) >= size:
            *full, rest = joined(waiting).tensor_split([*range(size, sum(map(len, waiting)) + 1, size)])
            yield from full
            waiting = [rest] if len(rest) else []
    if waiting:
        yield joined(waiting)


def joined(batches: Sequence[Tensor]) -> Tensor:
    """Return batches as one; grey images among RGB ones are repeated over the channels."""
    channels = max(batch.shape[1] for batch in batches)
    return torch.cat([batch.expand(-1, channels, -1, -1) for batch in batches]) if len(batches) > 1 else batches[0]


def subject_of(images: Path) -> dict[str, str]:
    """Return the identity of the images of a sample file; empty where the file has none.

    ValueError: The file is damaged, or its images are not those of its place.
    """
    if images.suffix != ".npz" or "about" not in array_names(images):
        return {}
    subject = dict(read_arrays(images, (), about={"subject?": {str: str}}).about.get("subject", {}))
    check_place(images, subject)
    return subject


def sampled_by(images: Path) -> dict[str, str]:
    """Return the record of the arithmetic of the images of a sample file; empty where the file has none."""
    if images.suffix != ".npz" or "about" not in array_names(images):
        return {}
    return dict(read_arrays(images, (), about={"arithmetic?": ARITHMETIC}).about.get("arithmetic", {}))


def check_place(path: Path, subject: Mapping[str, Any]) -> None:
    """Compare the identity in a file with the place of the file. ValueError: It has none, or that of another block."""
    expected = identity_at(path)
    if expected and dict(subject) != expected:
        found, place = (", ".join(map(str, each.values())) or "no identity" for each in (subject, expected))
        raise ValueError(f"{path}: got images of {found}, expected {place}. Fix: delete it and make it again")


def check_images(path: Path) -> None:
    """Check before any work that a file or folder of images, features or statistics can be read.

    ValueError: There is none, an .npz is damaged or has nothing of these, or a .zip is none.
    """
    if not path.exists():
        raise ValueError(f"{path}: there is no such file or folder. Fix: correct the path")
    if path.is_dir() and path.suffix not in (".npz", ".zip", *TENSORS):
        return
    regular_file(path)
    if path.suffix == ".npz" and not _USED & (names := array_names(path)):
        found, expected = ", ".join(sorted(names)) or "nothing", ", ".join(sorted(_USED - {"about"}))
        raise ValueError(f"{path}: got {found[:200]}, expected one of {expected}. Fix: choose another file")
    if path.suffix == ".zip" and not zipfile.is_zipfile(path):
        raise ValueError(f"{path}: cannot be read as a zip archive. Fix: build it again")


def read_pixels(path: Path) -> np.ndarray:
    """Return the images of a file as uint8 [N, C, H, W].

    They are samples (.npz with `pixels` uint8 [N, H, W, C]), a dataset archive (.zip), or a published batch (.npz with
    `arr_0`, as of guided-diffusion). ValueError: The file is not one of these.
    """
    if path.suffix == ".zip":
        return ImageZip(source=checked(path)).read_all()[0]
    published = published_arrays(checked(path), [_PUBLISHED, _OURS])
    arrays = read_arrays(path).arrays if published is None else published
    name = _OURS if published is None or (_OURS in arrays and _PUBLISHED not in arrays) else _PUBLISHED
    pixels = arrays.get(name)
    if pixels is None or pixels.dtype != np.uint8 or pixels.ndim != 4:
        found = "none" if pixels is None else f"{pixels.dtype} {list(pixels.shape)}"
        raise ValueError(f"{path}: {name}: got {found}, expected an array uint8 [N, H, W, C]")
    if pixels.shape[3] not in (1, 3) or not pixels.size:
        is_other = pixels.shape[1] in (1, 3)
        fix = f"{'Its order is [N, C, H, W]. ' if is_other else ''}Fix: transpose it" if pixels.size else "Fix: sample"
        found = f"{pixels.dtype} {list(pixels.shape)}"
        raise ValueError(f"{path}: {name}: got {found}, expected [N, H, W, C] with C = 1 or 3. {fix}")
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
