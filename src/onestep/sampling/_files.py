"""A model's images for a range of seeds: into a file, or on to who looks at them; and a few of them for the page."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from onestep.archive import write_arrays
from onestep.files import sha256_of_file
from onestep.networks import load_denoiser
from onestep.sampling import Sampler, Samples, generate

_EVERY_SECONDS = 10.0
_GRID = 128  # images in a grid: as many as fit on the results page's largest sheet


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """Which images are drawn.

    Attributes:
        weights: A snapshot or a teacher.
        sampler: From noise to images.
        seeds: One an image.
        batch: Images between two looks at the clock; it does not change them.
        options: The config block that names the sampler, recorded in the files.
    """

    weights: Path
    sampler: Sampler
    seeds: Sequence[int]
    batch: int
    options: Mapping[str, Any]


def write_samples(drawing: Drawing, *, output: Path, grid: Path | None) -> None:
    """Write `pixels` uint8 [N, H, W, C], `labels` int64 [N] (-1 where the network knows no classes) and `seeds` [N].

    Args:
        drawing: Which images.
        output: The .npz to write.
        grid: The .npz with the first of them alone; None for none.

    Raises:
        ValueError: The weights are not those of a denoiser.
    """
    parts = list(drawn(drawing, called=_called(output), grid=grid))
    _write(output, parts, drawing=drawing, count=len(drawing.seeds))


def drawn(drawing: Drawing, *, called: str, grid: Path | None) -> Iterator[Samples]:
    """Yield the images in the order of their seeds, batch by batch; write the grid after the last.

    Args:
        drawing: Which images.
        called: What lines about the progress call them.
        grid: The .npz with the first of them; None for none.

    Raises:
        ValueError: The weights are not those of a denoiser.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = load_denoiser(drawing.weights).to(device)
    first: list[Samples] = []
    done, started = 0, time.monotonic()
    said = started
    for made in generate(network, drawing.sampler, seeds=drawing.seeds, batch=drawing.batch):
        first += [made] if done < _GRID else []
        done += len(made.pixels)
        if time.monotonic() - said > _EVERY_SECONDS:
            said = time.monotonic()
            _say(called, done=done, wanted=len(drawing.seeds), seconds=said - started)
        yield made
    if grid is not None:
        _write(grid, first, drawing=drawing, count=min(_GRID, len(drawing.seeds)))


def _write(path: Path, parts: Sequence[Samples], *, drawing: Drawing, count: int) -> None:
    """Write the first `count` of these images."""
    pixels = [part.pixels.numpy() for part in parts]
    labels = [np.full(len(part.pixels), -1) if part.labels is None else part.labels.numpy() for part in parts]
    arrays = {
        "pixels": np.concatenate(pixels)[:count],
        "labels": np.concatenate(labels).astype(np.int64)[:count],
        "seeds": np.asarray(drawing.seeds[:count], dtype=np.int64),
    }
    about = {
        "weights_sha256": sha256_of_file(drawing.weights),
        "sampler": dict(drawing.options),
        "evaluations": drawing.sampler.evaluations,
    }
    write_arrays(path, arrays, about=about)


def _called(path: Path) -> str:
    return "/".join(path.with_suffix("").parts[-3:])


def _say(called: str, *, done: int, wanted: int, seconds: float) -> None:
    rate = done / seconds
    left = f"{(wanted - done) / rate:.0f} s left"
    print(f"{called}  {done:,}/{wanted:,} images  {rate:.1f} images/s  {left}", file=sys.stderr, flush=True)
