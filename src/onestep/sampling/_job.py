"""Sampling jobs: the images of a model for a block of seeds, as a file or as a stream."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from onestep.archive import write_arrays
from onestep.files import sha256_of_file
from onestep.networks import load_denoiser
from onestep.progress import Bar
from onestep.sampling import Sampler, Samples, generate

_GRID = 128  # images in a grid, the most that a sheet of the results page shows


@dataclass(frozen=True, kw_only=True)
class SamplingJob:
    """Images to generate with a snapshot or a teacher, one per seed.

    `subject` is the identity of the images, recorded in every file made from them: `model`, `sampler` and `seeds` as in
    config.yaml. It is empty for images that are not measured by `onestep measure`.
    """

    weights: Path
    sampler: Sampler
    options: Mapping[str, Any]  # the config block of the sampler
    seeds: Sequence[int]
    batch: int  # images per yielded item; does not change them
    subject: Mapping[str, str]


def write_samples(job: SamplingJob, *, output: Path, grid: Path | None) -> None:
    """Write `pixels` uint8 [N, H, W, C], `labels` int64 [N] (-1 without classes), `seeds` int64 [N], and the grid."""
    for _ in iter_samples(job, grid=grid, output=output):
        pass


def iter_samples(job: SamplingJob, *, grid: Path | None, output: Path | None = None) -> Iterator[Samples]:
    """Yield the images batch by batch in the order of their seeds.

    After the last write all of them to `output`, as `write_samples` does, and the first ones to `grid`.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = load_denoiser(job.weights).to(device)
    first: list[Samples] = []
    kept: list[Samples] = []
    label = "/".join(job.subject.values()) or job.weights.stem
    with Bar(total=len(job.seeds), desc=label, unit="image", mininterval=10, delay=10) as progress:
        for made in _named(generate(network, job.sampler, seeds=job.seeds, batch=job.batch), job):
            if sum(len(part.pixels) for part in first) < _GRID:
                first.append(made)
            if output is not None:
                kept.append(made)
            progress.update(len(made.pixels))
            yield made
    if output is not None:
        _write(output, kept, job=job, count=len(job.seeds))
    if grid is not None:
        _write(grid, first, job=job, count=min(_GRID, len(job.seeds)))


def _named(samples: Iterator[Samples], job: SamplingJob) -> Iterator[Samples]:
    """Yield the same items; an error names the weights."""
    try:
        yield from samples
    except ValueError as error:
        raise ValueError(f"{job.weights}: {error}") from error


def _write(path: Path, parts: Sequence[Samples], *, job: SamplingJob, count: int) -> None:
    labels = [np.full(len(part.pixels), -1) if part.labels is None else part.labels.numpy() for part in parts]
    arrays = {
        "pixels": np.concatenate([part.pixels.numpy() for part in parts])[:count],
        "labels": np.concatenate(labels).astype(np.int64)[:count],
        "seeds": np.asarray(job.seeds[:count], dtype=np.int64),
    }
    about = {
        "subject": dict(job.subject),
        "weights_sha256": sha256_of_file(job.weights),
        "sampler": dict(job.options),
        "evaluations": job.sampler.nfe,
    }
    write_arrays(path, arrays, about=about)
