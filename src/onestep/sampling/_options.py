"""Options of the verbs that sample, as a value."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onestep.sampling._job import SamplingJob


def sampling_job(
    weights: Path,
    *,
    sampler: Mapping[str, Any],
    seeds: range,
    model: str | None,
    sampler_name: str | None,
    batch: int,
    output: Path,
    codec: Path | None = None,
) -> SamplingJob:
    """Return the images to generate from the options of a verb; those so far are kept beside its `output`."""
    from onestep import components
    from onestep.sampling._job import SamplingJob

    subject = {}
    if model is not None and sampler_name is not None:
        subject = {"model": model, "sampler": sampler_name, "seeds": f"{seeds[0]}-{seeds[-1]}"}
    built = components.build("sampling", sampler)
    parts = output.with_name(f".{output.name}.parts")
    return SamplingJob(
        weights=weights,
        sampler=built,
        options=sampler,
        seeds=seeds,
        batch=batch,
        subject=subject,
        codec=codec,
        parts=parts,
    )
