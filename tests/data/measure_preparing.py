"""How fast `onestep prepare` is with one worker, beside a plain loop of Pillow that writes the same pixels.

Usage: python tests/data/measure_preparing.py [--images 5000] [--resolution 32] [--rounds 5] [--record docs/records].
The loop opens each JPEG, and stores it as an uncompressed PNG in a zip: what EDM's dataset tool does for images that
keep their size. It writes no card, checks nothing and is one file: the least that such a tool can take. Each round is a
process of each, one after the other; the ratio is the median over rounds.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from onestep.bench.recording import Stopwatch, write_benchmark

_LOOP = """
import io, json, sys, zipfile
from pathlib import Path
import numpy as np
from PIL import Image
folder, target = map(Path, sys.argv[1:])
with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
    for number, path in enumerate(sorted(folder.rglob("*.jpg"))):
        pixels = np.array(Image.open(path).convert("RGB"))
        content = io.BytesIO()
        Image.fromarray(pixels).save(content, format="png", compress_level=0, optimize=False)
        archive.writestr(f"{number // 1000:05d}/img{number:08d}.png", content.getvalue())
    archive.writestr("dataset.json", json.dumps({"labels": None}))
"""


def write_jpegs(folder: Path, *, images: int, resolution: int) -> None:
    """Write smooth random pictures, half of them in each of two class folders."""
    random = np.random.default_rng(0)
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
    for number in range(images):
        coarse = random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((resolution, resolution), Image.Resampling.BICUBIC)
        picture.save(folder / "ab"[number % 2] / f"{number:06d}.jpg", quality=90)


def cpu_seconds(words: list[str]) -> float:
    """Return the CPU seconds of a Python process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Measure, print, and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5_000)
    parser.add_argument("--resolution", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--record", type=Path)
    given = parser.parse_args()
    watch, loop, ours = Stopwatch(), [], []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_jpegs(folder / "photos", images=given.images, resolution=given.resolution)
        for number in range(given.rounds):
            loop.append(cpu_seconds(["-c", _LOOP, str(folder / "photos"), str(folder / f"loop{number}.zip")]))
            shape = {"resolution": given.resolution, "transform": "center_crop", "labels": "folders"}
            dataset = json.dumps({"name": "images", **shape})
            output = ["--workers", "1", "--output", str(folder / f"ours{number}.zip")]
            words = ["--dataset", dataset, "--source", str(folder / "photos"), *output]
            ours.append(cpu_seconds(["-m", "onestep", "prepare", *words]))
            print(f"round {number}: loop {loop[-1]:.2f} s, prepare {ours[-1]:.2f} s", flush=True)
    numbers = {
        "images": given.images,
        "resolution": given.resolution,
        "loop.cpu_seconds": statistics.median(loop),
        "prepare.cpu_seconds": statistics.median(ours),
        "speed_of_the_loop": statistics.median(a / b for a, b in zip(loop, ours, strict=True)),
    }
    print(*(f"{name} {value:.3g}" for name, value in numbers.items()), sep=", ")
    if given.record is not None:
        about = f"`onestep prepare` of {given.images:,} JPEGs with one worker beside a plain loop of Pillow."
        print(write_benchmark(given.record, name="preparing", about=about, took=watch.read(), numbers=numbers))


if __name__ == "__main__":
    main()
