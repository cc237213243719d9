"""Images so far of a long sampling, as files beside its output, from which a killed job continues."""

from __future__ import annotations

import hashlib
import logging
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from onestep.archive import read_arrays, write_arrays
from onestep.files import sha256_of_file
from onestep.sampling import Samples

SECONDS = 300.0
"""Between two files: the most that a killed job loses. A shorter sampling writes none."""

_logger = logging.getLogger(__name__)


class Parts:
    """The images so far of `seeds`, in their order, in a folder; None keeps nothing.

    `identity` is what determines their bytes beside the seeds and the code; files of another one are not used.
    """

    def __init__(self, folder: Path | None, *, seeds: Sequence[int], identity: Mapping[str, Any]) -> None:
        self._folder, self._seeds = folder, np.asarray(seeds, dtype=np.int64)
        self._about = {} if folder is None else {**identity, "code": _code()}
        self._waiting: list[Samples] = []
        self._since = time.monotonic()
        self.images = 0  # read or written

    def read(self) -> Iterator[Samples]:
        """Yield the images of an earlier start."""
        if self._folder is None:
            return
        while (path := self._path()).exists():
            found = self._read(path)
            if found is None:
                for each in self._folder.glob("*.npz"):
                    if int(each.stem) >= self.images:
                        each.unlink()
                break
            self.images += len(found.pixels)
            yield found
        if self.images:
            message = "%s: %s of %s images are from an earlier start"
            _logger.info(message, self._folder, f"{self.images:,}", f"{len(self._seeds):,}")
        self._since = time.monotonic()

    def add(self, samples: Samples) -> None:
        """Take the next images, and write all that wait if it is time."""
        if self._folder is None:
            return
        self._waiting.append(samples)
        if time.monotonic() >= self._since + SECONDS:
            arrays = {"pixels": torch.cat([each.pixels for each in self._waiting]).numpy()}
            labels = [each.labels for each in self._waiting if each.labels is not None]
            arrays |= {"labels": torch.cat(labels).numpy()} if labels else {}
            count = len(arrays["pixels"])
            arrays["seeds"] = self._seeds[self.images : self.images + count]
            write_arrays(self._path(), arrays, about=self._about)
            self.images += count
            self._waiting, self._since = [], time.monotonic()

    def _path(self) -> Path:
        assert self._folder is not None
        return self._folder / f"{self.images:09}.npz"

    def _read(self, path: Path) -> Samples | None:
        """Return the images of one file; None, and a line, where it is damaged or of something else."""
        try:
            arrays, about = read_arrays(path)
        except ValueError as error:
            _logger.warning("%s; its images are sampled again", error)
            return None
        expected = self._seeds[self.images :][: len(arrays.get("seeds", ()))]
        pixels, labels = arrays.get("pixels"), arrays.get("labels")
        if about != self._about or not len(expected) or not np.array_equal(arrays["seeds"], expected):
            _logger.warning("%s: got images of another start (weights, sampler, device or code); sampled again", path)
            return None
        assert pixels is not None
        return Samples(torch.from_numpy(pixels), None if labels is None else torch.from_numpy(labels))


def discard(folder: Path | None) -> None:
    """Remove the files of a sampling whose output is written."""
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)


def _code() -> str:
    """Return the digest of the modules of this package that are imported here."""
    digest = hashlib.sha256()
    for name, module in sorted(sys.modules.items()):
        path = getattr(module, "__file__", None) if name.partition(".")[0] == "onestep" else None
        if path is not None:
            digest.update(f"{name} {sha256_of_file(Path(path))}\n".encode())
    return digest.hexdigest()
