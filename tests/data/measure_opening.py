"""How long a training waits for a dataset of many images: the first process on a machine, and every later one.

Usage: python tests/data/measure_opening.py [--images 200000] [--resolution 32] [--record docs/records].
Each opening is a process of its own, as a rank is: it lists, decodes or maps, and draws a batch. CPU seconds are with
those of the helpers that decode, each of which imports torch.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import resource
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from onestep.bench.recording import Stopwatch, write_benchmark

_KINDS = 256  # pictures; an archive repeats them
_WAYS = ("first", "later")


def write_images(path: Path, *, images: int, resolution: int) -> None:
    """Write an archive as `onestep prepare` does, of repeated noise, and its card."""
    random = np.random.default_rng(0)
    pictures = []
    for _ in range(_KINDS):
        content = io.BytesIO()
        pixels = random.integers(0, 256, (resolution, resolution, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(content, format="png", compress_level=0, optimize=False)
        pictures.append(content.getvalue())
    labels = []
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for number in range(images):
            name = f"{number // 1000:05d}/img{number:08d}.png"
            header = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            header.external_attr = 0o644 << 16
            archive.writestr(header, pictures[number % _KINDS])
            labels.append([name, number % 1000])
        archive.writestr("dataset.json", json.dumps({"labels": labels}))
    from onestep.files import sha256_of_file, write_json

    write_json(path.with_suffix(".json"), {"sha256": sha256_of_file(path)})


def open_and_draw(path: Path, cache: Path) -> dict[str, float]:
    """Open an archive as a training does and draw a batch; return seconds and MiB beyond those of the imports."""
    import torch

    from onestep.data import _batches

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    watch = Stopwatch()
    archive = _batches.opened(path, cache=cache, in_memory=0)
    labels = _batches.OneHot(archive.labels(), classes=archive.classes)
    listed = watch.read()
    pixels = _batches.decoded(archive, cache=cache, in_memory=0)
    indices = torch.as_tensor(_batches.InfiniteOrder(size=len(pixels), seed=0).take(256))
    batch = pixels.index_select(0, indices), labels[indices]
    assert len(batch[0]) == 256
    for helper in multiprocessing.active_children():
        helper.join()  # so that their seconds count
    took = watch.read()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = {name: took[name] for name in ("seconds", "cpu_seconds")}
    return {"list_cpu_seconds": listed["cpu_seconds"], **found, "memory_mib": (peak - before) / 1024}


def main() -> None:
    """Measure, print, and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--resolution", type=int, default=32)
    parser.add_argument("--folder", type=Path, help="where the archive and the decoded pixels go; else TMPDIR")
    parser.add_argument("--record", type=Path)
    parser.add_argument("--open", nargs=2, metavar=("ARCHIVE", "CACHE"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.open:
        print(json.dumps(open_and_draw(*map(Path, given.open))))
        return
    watch, numbers = Stopwatch(), dict[str, float | str | None]()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        path = Path(folder, "many.zip")
        began = time.process_time()
        write_images(path, images=given.images, resolution=given.resolution)
        print(f"{given.images:,} images, {path.stat().st_size >> 20:,} MiB: {time.process_time() - began:.0f} CPU s")
        for way in _WAYS:
            command = [sys.executable, __file__, "--open", str(path), str(Path(folder, "cache"))]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            print(f"{way:8s}", ", ".join(f"{name} {value:.2f}" for name, value in found.items()), flush=True)
            numbers |= {f"{way}.{name}": value for name, value in found.items()}
    if given.record is not None:
        about = f"A training opens an archive of {given.images:,} images of {given.resolution}x{given.resolution}."
        numbers |= {"images": given.images, "resolution": given.resolution}
        print(write_benchmark(given.record, name="opening_a_dataset", about=about, took=watch.read(), numbers=numbers))


if __name__ == "__main__":
    main()
