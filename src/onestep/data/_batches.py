"""What batches of training are made of: decoded pixels, one-hot classes, and the order of the images.

Pixels are in memory if they are few, else in one memory-mapped file shared by all processes. The order is EDM's endless
shuffle in a sliding window, resumable.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from onestep.archive import digest_of, read_arrays, write_arrays
from onestep.checkpoints.digests import checked, read_record
from onestep.data._opening import open_archive, read_part
from onestep.data._processes import in_processes
from onestep.data.image_zip import ImageZip
from onestep.data.latent_zip import LatentZip
from onestep.files import Lock, regular_file, replacing, sha256_of_file, write_json

_logger = logging.getLogger(__name__)

# Each process has its own copy in memory: CIFAR-10 takes 0.15 GB, FFHQ at 64x64 0.86, ImageNet at 64x64 15.7.
_IN_MEMORY = 2**30
_PART = 8192  # images that one process decodes at a time
_INDEX = {"images": int, "channels": int, "resolution": int, "classes": int, "archive": dict, "codec?": (dict, None)}


class OneHot:
    """One-hot classes, made per batch: those of all of ImageNet would take 5 GB a process."""

    def __init__(self, labels: np.ndarray, *, classes: int) -> None:  # int64 [N], in 0..classes - 1
        self._labels, self._classes = torch.from_numpy(labels), classes

    def __getitem__(self, indices: Tensor) -> Tensor:
        """Return the rows float32 [B, K] of the images `indices`, int64 [B]."""
        return functional.one_hot(self._labels[indices], self._classes).float()


@dataclass(frozen=True, kw_only=True)
class IndexedZip:
    """What training reads of a large archive before its pixels, from the file that `opened` has made of it.

    The attributes are those of `ImageZip` or `LatentZip`.
    """

    source: Path
    images: int
    channels: int
    resolution: int
    classes: int
    _labels: np.ndarray
    latents: bool = False
    codec: Mapping[str, Any] | None = None

    def __len__(self) -> int:
        return self.images

    @property
    def stored(self) -> tuple[int, int, int]:
        """The shape of an image's array."""
        return self.channels * (2 if self.latents else 1), self.resolution, self.resolution

    def labels(self) -> np.ndarray:
        """Return all classes, int64 [N]."""
        return self._labels.astype(np.int64)


Archive: TypeAlias = ImageZip | LatentZip | IndexedZip


def opened(path: Path, *, cache: Path | None, in_memory: int = _IN_MEMORY) -> Archive:
    """Return an archive whose content is that of its record; ValueError as of `checked` and of the archive's class.

    A list of a million images takes seconds and hundreds of MiB. So of an archive whose pixels go to a file in `cache`
    one process makes the list, and all later ones, until the archive has another size or time, read what they need.
    """
    if cache is None or regular_file(path).stat().st_size <= in_memory // 2:
        return open_archive(checked(path))
    index = cache / f"{path.stem}-{digest_of(path)[:16]}.index.npz"
    cache.mkdir(parents=True, exist_ok=True)
    lock = Lock(index.with_suffix(".lock"))
    lock.acquire(seconds=math.inf)
    try:
        if (found := _read_index(index, path)) is not None:
            return found
        archive = open_archive(checked(path))
        if _size(archive) <= in_memory:
            return archive
        facts = {key: getattr(archive, key) for key in ("channels", "resolution", "classes")}
        about = {**facts, "images": len(archive), "archive": _state(path)}
        about |= {"latents": True, "codec": archive.codec} if isinstance(archive, LatentZip) else {}
        write_arrays(index, {"labels": archive.labels().astype(np.int32)}, about=about)
        return archive
    finally:
        lock.release()


def _read_index(index: Path, path: Path) -> IndexedZip | None:
    """Return what `opened` has written of an archive in its present state, None if there is nothing."""
    try:
        arrays, about = read_arrays(index, ["labels"], about=_INDEX)
        labels = arrays["labels"]
    except (OSError, ValueError, KeyError):
        return None
    fits = about["archive"] == _state(path) and labels.dtype == np.int32 and labels.shape == (about["images"],)
    facts = {key: about[key] for key in ("images", "channels", "resolution", "classes")}
    latents = {key: about[key] for key in ("latents", "codec") if key in about}
    return IndexedZip(source=path, _labels=labels, **facts, **latents) if fits else None


def _state(path: Path) -> dict[str, int]:
    """Return what a file that is written to has another of."""
    status = path.stat()
    return {"size": status.st_size, "time_ns": status.st_mtime_ns}


def _size(archive: Archive) -> int:
    """Return the bytes of all images."""
    return len(archive) * math.prod(archive.stored) * _type(archive).itemsize


def _type(archive: Archive) -> np.dtype[Any]:
    return np.dtype(np.float32 if archive.latents else np.uint8)


def decoded(archive: Archive, *, cache: Path | None, in_memory: int = _IN_MEMORY) -> Tensor:
    """Return all pixels of an archive, uint8 [N, C, H, W]; the caller must not write to them.

    Of an archive of latents their means and deviations, float32 [N, 2 C, H, W]. More than `in_memory` bytes are in a
    file in `cache`, best on a local disk: the first process decodes into it, with one helper for each processor core,
    the others wait and share. A JSON beside it has its digest, size and time of writing: if the time differs, the
    digest is compared, and if that differs, the archive is decoded again. None keeps everything in memory. An
    unreadable image is a ValueError.
    """
    shape, kind = (len(archive), *archive.stored), _type(archive)
    if cache is None or _size(archive) <= in_memory:
        listed = open_archive(checked(archive.source)) if isinstance(archive, IndexedZip) else archive
        return torch.from_numpy(listed.read_all()[0])
    path = cache / f"{archive.source.stem}-{digest_of(archive.source)[:16]}.npy"
    cache.mkdir(parents=True, exist_ok=True)
    lock = Lock(path.with_suffix(".lock"))
    lock.acquire(seconds=math.inf)
    try:
        if not _is_whole(path, shape, kind):
            _logger.info("decoding %s images into %s", f"{shape[0]:,}", path)
            with replacing(path) as temporary:
                pixels = np.lib.format.open_memmap(temporary, mode="w+", dtype=kind, shape=shape)
                pixels.flush()
                parts = [range(start, min(start + _PART, shape[0])) for start in range(0, shape[0], _PART)]
                source = checked(archive.source) if isinstance(archive, IndexedZip) else archive.source
                for _ in in_processes(read_part, (source, temporary), parts, workers=len(os.sched_getaffinity(0))):
                    pass
                digest = sha256_of_file(temporary)
            write_json(path.with_suffix(".json"), _stamp(path, digest))
    finally:
        lock.release()
    # Private pages: torch warns about read-only arrays, and writes by mistake do not reach the file.
    return torch.from_numpy(np.load(path, mmap_mode="c", allow_pickle=False))


def _is_whole(path: Path, shape: tuple[int, ...], kind: np.dtype[Any]) -> bool:
    """Whether a file holds the array that was written; its name holds the digest of the archive."""
    try:
        regular_file(path)
        found = np.load(path, mmap_mode="r", allow_pickle=False)
        if found.shape != shape or found.dtype != kind:
            return False
        record = path.with_suffix(".json")
        if not record.exists():  # of an earlier version
            return True
        written = read_record(record)
        stamp = _stamp(path, str(written.get("sha256")))
        if written == stamp:
            return True
        if sha256_of_file(path) != written.get("sha256"):
            return False
        write_json(record, stamp)
    except (OSError, ValueError, EOFError):
        return False
    return True


def _stamp(path: Path, digest: str) -> dict[str, Any]:
    """Return what the JSON beside a file of pixels holds; a file that is written to has another time."""
    return {"sha256": digest, **_state(path)}


class InfiniteOrder:
    """Endless indices of a dataset of `size` images for one rank.

    Starts from a full shuffle. Each position, once read, is swapped with one of the positions before it, in a `window`
    of that share of the dataset, in [0, 1], so that an image returns after about an epoch, at another place. All ranks
    share one order and one seed, in [0, 2^32); rank r of `world` reads the indices r, r + world, ... A number out of
    its range is a ValueError.

    Source: `InfiniteSampler` of EDM, reproduced draw by draw.
    """

    def __init__(self, *, size: int, seed: int, world: int = 1, rank: int = 0, window: float = 0.5) -> None:
        if size < 1:
            raise ValueError(f"a dataset must hold at least one image, found {size}")
        if not 0 <= rank < world:
            raise ValueError(f"rank must be in [0, world), found rank {rank} of world {world}")
        if not 0 <= window <= 1:
            raise ValueError(f"window is a share of the dataset, in [0, 1], found {window}")
        self._world, self._rank = world, rank
        self._window = int(np.rint(size * window))
        self._random = np.random.RandomState(seed)
        self._order = np.arange(size, dtype=np.int64)
        self._random.shuffle(self._order)
        self._position = 0

    def take(self, count: int) -> np.ndarray:
        """Return the next `count` indices of this rank, int64 [count]; all ranks must take as many."""
        size, start = len(self._order), self._position
        steps = count * self._world
        # The distance of each position's partner: the same numbers as single draws. The reference draws none for a
        # window of less than two.
        back = self._random.randint(self._window, size=steps).tolist() if self._window >= 2 else [0] * steps
        read = np.empty(steps, dtype=np.int64)
        order: Any = memoryview(self._order)  # type: ignore[arg-type]  # a third faster to index one by one than the array
        for n in range(steps):
            here = (start + n) % size
            there = (here - back[n]) % size
            read[n] = order[here]
            order[here], order[there] = order[there], order[here]
        self._position += steps
        return read[(self._rank - start) % self._world :: self._world]

    def state(self) -> dict[str, Any]:
        """Return the complete state, arrays and integers, each a copy."""
        _, key, position, *_ = cast(tuple[Any, ...], self._random.get_state())
        numbers = {"position": self._position, "random_position": int(position)}
        return {"order": self._order.copy(), "random_key": key.copy(), **numbers}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from the position at which `state()` was taken; a dataset of another size is a ValueError."""
        order = np.array(state["order"], dtype=np.int64)
        if len(order) != len(self._order):
            found = f"the saved order has {len(order)} images, the dataset {len(self._order)}"
            raise ValueError(f"{found}; resume with the dataset that the run was started with, or start a new run")
        self._order = order
        self._position = int(state["position"])
        key = np.asarray(state["random_key"], dtype=np.uint32)
        self._random.set_state(("MT19937", key, int(state["random_position"]), 0, 0.0))
