"""The best of a run's snapshots, by one number of each."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onestep.files import read_json, replacing, write_json
from onestep.metrics import Direction
from onestep.models import Selected, Snapshot, parse_model
from onestep.results import Results


def write_selection(choice: Mapping[str, Any], *, results: Path, output: Path) -> None:
    """Copy the chosen snapshot to `output`, and write beside it, as JSON, what was chosen from what.

    The paper reports the lowest FID over a run's snapshots. The best of several noisy numbers flatters, so a table that
    chooses by other seeds than those it reports (`select_seeds`) is free of that bias.

    Args:
        choice: `model`, the name that says by which number; `direction`, which way it is better; `images`, the counts
            that name the snapshots.
        results: The results folder.
        output: The .safetensors to write.

    Raises:
        ValueError: A measurement lacks the number.
    """
    model = parse_model(choice["model"])
    if not isinstance(model, Selected):
        raise ValueError(f"--choice: got the model {choice['model']}, expected run@best-...")
    candidates = [model.candidate(images) for images in sorted(choice["images"])]
    values = [_value(candidate, model, results=results) for candidate in candidates]
    chosen = candidates[best(values, direction=choice["direction"])]
    with replacing(output) as temporary:
        # A copy and no link: a link made now would make the snapshot look newer than what came from it.
        shutil.copyfile(Results(results).weights(chosen), temporary)
    write_json(
        output.with_suffix(".json"),
        {
            "model": str(model),
            "snapshot": str(chosen),
            "images": chosen.images,
            "number": f"{model.choice.metric}.{model.choice.value}",
            "direction": choice["direction"],
            "sampler": model.choice.sampler,
            "seeds": model.choice.seeds,
            "candidates": {str(each.images): value for each, value in zip(candidates, values, strict=True)},
        },
    )


def best(values: Sequence[float], *, direction: Direction) -> int:
    """Return the place of the best value; of equal ones the first, which is the earlier snapshot."""
    worth = [-value if direction == "lower" else value for value in values]
    return worth.index(max(worth))


def _value(candidate: Snapshot, model: Selected, *, results: Path) -> float:
    """Return the number by which a candidate is judged."""
    by = model.choice
    path = Results(results).metric(candidate, by.sampler, by.seeds, by.metric)
    values = read_json(path)["values"]
    if by.value not in values:
        raise ValueError(f"{path}: no value {by.value!r}, only {', '.join(values)}; delete it to measure it again")
    return float(values[by.value])
