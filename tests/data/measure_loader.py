"""How many pictures a second one process gets from the decoded cache: order, indexing, to float32 in [-1, 1].

Usage: python tests/data/measure_loader.py [--images 50000] [--batch 512] [--seconds 5]. Prints a line for each
resolution, for pixels in memory and for pixels in a mapped file, as `onestep train` reads them.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from image_archives import write_archive
from onestep.data import to_images
from onestep.data._batches import InfiniteOrder, OneHot, decoded
from onestep.data.image_zip import ImageZip


class Rate(NamedTuple):
    """Pictures a second of wall clock, and a second of one core: the same on an idle machine with one thread."""

    wall: float
    core: float


def rate_of(pixels: Tensor, labels: OneHot, *, batch: int, seconds: float) -> Rate:
    """Draw batches as the training loop does for at least `seconds`, after one that does not count."""
    order = InfiniteOrder(size=len(pixels), seed=0)
    drawn, begun, worked = -batch, time.perf_counter(), time.process_time()
    while time.perf_counter() - begun < seconds:
        indices = torch.as_tensor(order.take(batch))
        to_images(pixels[indices]), labels[indices]
        drawn += batch
        if drawn == 0:
            begun, worked = time.perf_counter(), time.process_time()
    return Rate(drawn / (time.perf_counter() - begun), drawn / (time.process_time() - worked))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--seconds", type=float, default=5.0)
    options = parser.parse_args()
    random = np.random.RandomState(0)
    for resolution in (32, 64):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "random.zip")
            shape = (3, resolution, resolution)
            pictures = (random.randint(256, size=shape).astype(np.uint8) for _ in range(options.images))
            write_archive(path, ((picture, index % 10) for index, picture in enumerate(pictures)))
            archive = ImageZip(source=path)
            labels = OneHot(archive.labels(), classes=archive.classes)
            for kind, cache in (("memory", None), ("mapped", Path(folder))):
                pixels = decoded(archive, cache=cache, in_memory=0)
                rate = rate_of(pixels, labels, batch=options.batch, seconds=options.seconds)
                called = f"{resolution}x{resolution}, {kind}, {torch.get_num_threads()} threads"
                print(f"{called}: {rate.wall:,.0f} pictures/s, {rate.core:,.0f} a second of one core")


if __name__ == "__main__":
    main()
