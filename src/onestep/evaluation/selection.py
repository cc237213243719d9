"""The verb `select`: the best snapshot of a run by a metric."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onestep.checkpoints.digests import WEIGHTS, checked_digest
from onestep.files import replacing, sealed, write_json
from onestep.metrics import Direction
from onestep.models import Selected, Snapshot, parse_model
from onestep.records import differing, fact_of, read_measurement, value_of
from onestep.results import Results


def select(*, choice: Mapping[str, Any], results: Path, output: Path) -> int:
    """Select a run's best snapshot by a metric.

    The paper reports the lowest FID over the snapshots of a run. The minimum of noisy values is biased; a table that
    selects on other seeds than it reports (`select_seeds`) avoids this bias.

    Args:
        choice: `model`, its name; `direction`, lower or higher; `images`, the candidates (JSON).
        results: The results folder.
        output: The weights of the selected snapshot (.safetensors); its record is written beside it (.json).
    """
    model = parse_model(choice["model"])
    if not isinstance(model, Selected):
        raise ValueError(f"--choice: got the model {choice['model']}, expected run@best-...")
    candidates = [model.candidate(images) for images in sorted(choice["images"])]
    values = _values(candidates, model, results=results)
    chosen = candidates[best(values, direction=choice["direction"])]
    snapshot = Results(results).weights(chosen)
    digest = checked_digest(snapshot)
    with replacing(output) as temporary:
        # A copy: a link would update the time of the snapshot, and Snakemake would rerun what was made from it.
        shutil.copyfile(snapshot, temporary)
    record = {
        "model": str(model),
        "snapshot": str(chosen),
        WEIGHTS: digest,
        "images": chosen.images,
        "number": f"{model.choice.metric}.{model.choice.value}",
        "direction": choice["direction"],
        "sampler": model.choice.sampler,
        "seeds": model.choice.seeds,
        "candidates": {str(each.images): value for each, value in zip(candidates, values, strict=True)},
    }
    write_json(output.with_suffix(".json"), sealed(record))
    return 0


def best(values: Sequence[float], *, direction: Direction) -> int:
    """Return the index of the best value, the first of equal ones."""
    return values.index(min(values) if direction == "lower" else max(values))


def _values(candidates: Sequence[Snapshot], model: Selected, *, results: Path) -> list[float]:
    """Return the number of each candidate. ValueError: It has none, or was measured otherwise than the first."""
    by = model.choice
    paths = [Results(results).metric(each, by.sampler, by.seeds, by.metric) for each in candidates]
    first, *others = measurements = [read_measurement(path) for path in paths]
    values = [value_of(each, path=path, value=by.value) for each, path in zip(measurements, paths, strict=True)]
    for path, other in zip(paths[1:], others, strict=True):
        if facts := differing(first, other):
            found = f"{path}: got {facts[0]} {fact_of(other, facts[0])}, expected {fact_of(first, facts[0])}"
            raise ValueError(f"{found} as in {paths[0]}. Fix: delete both, and measure again")
    return values
