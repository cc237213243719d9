"""The verb `sample`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onestep.sampling._job import SamplingJob


def sample(
    *,
    weights: Path,
    sampler: Mapping[str, Any],
    seeds: range,
    model: str | None = None,
    sampler_name: str | None = None,
    batch: int = 256,
    grid: Path | None = None,
    output: Path,
) -> int:
    """Generate one image per seed.

    Args:
        weights: A teacher or a snapshot.
        sampler: The sampler and its options, as in config.yaml (JSON).
        seeds: First and last seed, as `0-1999`.
        model: Name of the model, recorded in the output; needed to measure the images.
        sampler_name: Name of the sampler in config.yaml, recorded likewise.
        batch: Images per batch.
        grid: Also write the first images here (.npz).
        output: The images (.npz), uint8 [N, H, W, C].
    """
    from onestep.sampling._job import write_samples

    job = sampling_job(weights, sampler=sampler, seeds=seeds, model=model, sampler_name=sampler_name, batch=batch)
    write_samples(job, output=output, grid=grid)
    return 0


def sampling_job(
    weights: Path, *, sampler: Mapping[str, Any], seeds: range, model: str | None, sampler_name: str | None, batch: int
) -> SamplingJob:
    """Return the images to generate from the options of a verb."""
    from onestep import components
    from onestep.sampling._job import SamplingJob

    subject = {}
    if model is not None and sampler_name is not None:
        subject = {"model": model, "sampler": sampler_name, "seeds": f"{seeds[0]}-{seeds[-1]}"}
    built = components.build("sampling", sampler)
    return SamplingJob(weights=weights, sampler=built, options=sampler, seeds=seeds, batch=batch, subject=subject)
