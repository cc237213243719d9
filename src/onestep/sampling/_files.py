"""A model's images for a range of seeds, into a file."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from onestep.archive import write_arrays
from onestep.files import sha256_of_file
from onestep.networks import load_denoiser
from onestep.sampling import Sampler, generate

_EVERY_SECONDS = 10.0


def write_samples(
    weights: Path, sampler: Sampler, *, seeds: range, batch: int, options: Mapping[str, Any], output: Path
) -> None:
    """Write `pixels` uint8 [N, H, W, C], `labels` int64 [N] (-1 where the network knows no classes) and `seeds` [N].

    Args:
        weights: A snapshot or a teacher.
        sampler: From noise to images.
        seeds: One an image.
        batch: Images between two looks at the clock; it does not change them.
        options: The config block that names the sampler, recorded in the file.
        output: The .npz to write.

    Raises:
        ValueError: The weights are not those of a denoiser.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = load_denoiser(weights).to(device)
    pixels, labels = [], []
    started = said = time.monotonic()
    for made in generate(network, sampler, seeds=seeds, batch=batch):
        pixels.append(made.pixels.numpy())
        labels.append(np.full(len(made.pixels), -1) if made.labels is None else made.labels.numpy())
        if time.monotonic() - said > _EVERY_SECONDS:
            said = time.monotonic()
            _say(output, done=sum(map(len, pixels)), wanted=len(seeds), seconds=said - started)
    arrays = {
        "pixels": np.concatenate(pixels),
        "labels": np.concatenate(labels).astype(np.int64),
        "seeds": np.asarray(seeds, dtype=np.int64),
    }
    about = {"weights_sha256": sha256_of_file(weights), "sampler": dict(options), "evaluations": sampler.evaluations}
    write_arrays(output, arrays, about=about)


def _say(output: Path, *, done: int, wanted: int, seconds: float) -> None:
    rate = done / seconds
    name = "/".join(output.with_suffix("").parts[-3:])
    left = f"{(wanted - done) / rate:.0f} s left"
    print(f"{name}  {done:,}/{wanted:,} images  {rate:.1f} images/s  {left}", file=sys.stderr, flush=True)
