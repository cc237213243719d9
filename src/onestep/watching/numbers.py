"""A number of each snapshot while its run trains, with the identity of what was compared."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onestep import components
from onestep.arithmetic import record_of
from onestep.evaluation.extraction import extract, feature_network, write_extracted
from onestep.evaluation.measurement import write_measurement
from onestep.files import read_json, regular_file, sealed, sha256_of_file, write_json
from onestep.networks import load_denoiser
from onestep.progress import patient
from onestep.sampling import ROWS, Sampler, generate, sampled_in
from onestep.training.assembly import Training
from onestep.training.publication import spec_of
from onestep.watching.grids import described

_BATCH = 4 * ROWS


class Interrupted(Exception):
    """The training is to stop; the number is measured after the resume."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A metric that the config requests, with its files; paths as text, since an order is JSON.

    Attributes:
        metric: Name in section `metrics`.
        images: Number of images; their seeds are 0, 1, ...
        block: Of the metric, with its options.
        features: Name in section `features`; `features_block` is its block.
        weights: File of the feature extractor.
        real: Features of the dataset's images, or its published reference, which is the input `real_input`; None for
            a metric of generated images alone.
    """

    metric: str
    images: int
    block: Mapping[str, Any]
    features: str
    features_block: Mapping[str, Any]
    weights: str
    real: str | None = None
    real_input: str | None = None


def unmeasured(asked: Iterable[Asked], counts: Iterable[int], *, folder: Path) -> Iterator[tuple[Asked, int]]:
    """Yield the requests that are not measured yet, with the images seen of the snapshot."""
    counts = list(counts)
    for each in asked:
        yield from ((each, count) for count in counts if not _path(folder, each, count).exists())


def write_number(
    asked: Asked,
    training: Training,
    count: int,
    *,
    folder: Path,
    sampler: Sampler,
    device: torch.device,
    goes_on: Callable[[], None],
) -> dict[str, float]:
    """Measure a snapshot and return the numbers; the record has the run hash and the SHA-256 of the weights, too.

    `goes_on` is called between batches, and may raise. ValueError: A file is missing or does not fit.
    """
    for name in filter(None, (asked.weights, asked.real)):
        regular_file(Path(name))
    weights, seeds = folder / f"snapshots/{count}.safetensors", f"0-{asked.images - 1}"
    subject = {"model": f"{training.name}@{count}", "sampler": described(sampler)["name"], "seeds": seeds}
    network = feature_network(asked.features_block, weights=Path(asked.weights), name=asked.features)
    generator = load_denoiser(weights).to(device)

    def batches() -> Iterator[Tensor]:
        with patient(name=f"{subject['model']} {asked.metric}", total=asked.images) as bar:
            for made in generate(generator, sampler, seeds=range(asked.images), batch=_BATCH, codec=training.codec):
                goes_on()
                yield made.pixels.permute(0, 3, 1, 2)
                bar.update(len(made.pixels))

    output = _path(folder, asked, count)
    with tempfile.TemporaryDirectory(dir=folder) as room:
        features, measured = Path(room, "generated.npz"), Path(room, "number.json")
        write_extracted(
            {features: network},
            extract([network.extractor], batches()),
            subject=subject,
            sampled=record_of(sampled_in(generator, sampler), device=device),
        )
        write_measurement(
            components.build("metrics", asked.block),
            name=asked.metric,
            options=asked.block,
            generated=features,
            real=None if asked.real is None else Path(asked.real),
            real_input=asked.real_input,
            output=measured,
        )
        record = read_json(measured)
    facts = {"spec": spec_of(folder), "weights_sha256": sha256_of_file(weights), "sampler_options": described(sampler)}
    write_json(output, sealed(record | facts))
    return dict(record["values"])


def _path(folder: Path, asked: Asked, count: int) -> Path:
    return folder / f"watch/{count}.{asked.metric}.json"
