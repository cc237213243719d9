"""Part 3: a report of 50,000 images, by its parts, with random weights; the numbers of a GPU beside those of a CPU."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gpu.measured_run import timed
from metrics.random_networks import blobs, write_inception
from onestep.arithmetic import Precision
from onestep.evaluation.extraction import extract
from onestep.features.inception import InceptionFeatures
from onestep.metrics.frechet import FrechetDistance
from onestep.metrics.kernel_distance import KernelDistance
from onestep.metrics.precision_recall import PrecisionRecall
from onestep.networks import build_denoiser, published_architecture
from onestep.sampling import generate
from onestep.sampling.one_step import OneStep

Found = Iterator[dict[str, float | str]]


def sampling(
    device: torch.device,
    *,
    images: int,
    network: str = "",
    config: dict[str, Any] | None = None,
    precision: Precision = "float32",
) -> Found:
    """Generate images in one step with a published architecture, or with a network of a config."""
    torch.manual_seed(0)
    denoiser = build_denoiser(config or published_architecture(network)).eval().to(device)
    sampler = OneStep(precision=precision)
    for _ in generate(denoiser, sampler, seeds=range(64), batch=64):
        pass
    seconds, made = timed(
        lambda: sum(len(each.pixels) for each in generate(denoiser, sampler, seeds=range(images), batch=256)), device
    )
    yield {"seconds": seconds, "images_per_second": made / seconds}
    if device.type == "cuda":
        yield {"memory_mib": torch.cuda.max_memory_allocated() / 2**20}


def inception(device: torch.device, *, images: int) -> Found:
    """Extract Inception features as `onestep extract` does, on the device that it takes."""
    with tempfile.TemporaryDirectory() as folder:
        network = InceptionFeatures(weights=write_inception(Path(folder, "inception.pt")))
    pixels = blobs(min(images, 4096), seed=0)
    batches = [pixels[torch.arange(start, min(start + 256, images)) % len(pixels)] for start in range(0, images, 256)]
    seconds, found = timed(lambda: extract([network], batches), device)
    yield {"seconds": seconds, "images_per_second": found.images / seconds}


def metrics(device: torch.device, *, images: int, on_cpu: int, width: int = 2048, subsets: int = 100) -> Found:
    """Compare metrics on the device and on the CPU: seconds, and the relative difference of each number.

    The numbers are compared on the first `on_cpu` images, of both sets.
    """
    random = np.random.default_rng(0)
    scale = np.linspace(0.2, 1.5, width, dtype=np.float32)
    sets = [random.normal(size=(images, width)).astype(np.float32) * scale + shift for shift in (0.0, 0.02)]
    here = [torch.from_numpy(each).to(device) for each in sets]
    measured = {"frechet": FrechetDistance(), "pr": PrecisionRecall(), "kernel": KernelDistance(subsets=subsets)}
    for name, metric in measured.items():
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        metric(generated=here[0][:on_cpu], real=here[1][:on_cpu])  # libraries are loaded
        seconds, _ = timed(lambda m=metric: m(generated=here[0], real=here[1]), device)
        yield {f"{name}.seconds": seconds}
        if device.type == "cuda":
            yield {f"{name}.memory_mib": torch.cuda.max_memory_allocated() / 2**20}
    for name, metric in measured.items():
        few, few_here = ([each[:on_cpu] for each in group] for group in ([torch.from_numpy(s) for s in sets], here))
        seconds, expected = timed(lambda m=metric, f=few: m(generated=f[0], real=f[1]), torch.device("cpu"))
        found = metric(generated=few_here[0], real=few_here[1])
        yield {f"{name}.cpu_seconds": seconds}
        yield {
            f"{name}.differs": max(abs(found[key] - value) / max(abs(value), 1e-6) for key, value in expected.items())
        }
