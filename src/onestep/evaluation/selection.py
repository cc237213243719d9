"""The verb `select`: the best snapshot of a run by a metric."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onestep.checkpoints.digests import WEIGHTS, checked_digest, read_record, sealed
from onestep.files import replacing, write_json
from onestep.metrics import Direction
from onestep.models import Selected, Snapshot, parse_model
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
    values = [_value(candidate, model, results=results) for candidate in candidates]
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


def _value(candidate: Snapshot, model: Selected, *, results: Path) -> float:
    by = model.choice
    path = Results(results).metric(candidate, by.sampler, by.seeds, by.metric)
    values = read_record(path).get("values")
    if not isinstance(values, dict) or by.value not in values:
        found = ", ".join(values) if isinstance(values, dict) else "no values"
        raise ValueError(f"{path}: got {found}, expected {by.value!r}. Fix: delete it and measure again")
    value = values[by.value]
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{path}: {by.value}: got {value!r}, expected a finite number. Fix: delete it, measure again")
    return float(value)
