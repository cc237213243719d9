"""Measurements and logs of the runs of arms, as the workflow writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from onestep.files import write_json

SEEDS = ("0-9", "10-19")
OPTIONS = {"sampler": "one_step", "metric": "fd", "value": "frechet", "seeds": SEEDS}
IMAGES = (1_000, 2_000, 4_000)


def arms_of(labels: Sequence[str], *, seeds: int = 3) -> dict[str, tuple[str, ...]]:
    """Return arms of `seeds` runs each, named by label and seed."""
    return {label: tuple(f"{name_of(label)}.seed={seed}" for seed in range(seeds)) for label in labels}


def name_of(label: str) -> str:
    """Return a family's name for a label."""
    return "".join(each if each.isalnum() else "_" for each in label.lower())


def measure(
    folder: Path,
    run: str,
    values: Sequence[float],
    *,
    metric: str = "fd",
    value: str = "frechet",
    better: str = "lower",
    images: Sequence[int] = IMAGES,
    seeds: Sequence[str] = SEEDS,
) -> list[Path]:
    """Write the measurements of a run's snapshots, one per seed block and around each of `values`."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for count, level in zip(images, values, strict=True):
        for index, block in enumerate(seeds):
            record = {"model": f"{run}@{count}", "seeds": block, "values": {value: level * (1.01 - 0.02 * index)}}
            paths.append(folder / f"{metric}.{run}.{count}.{index}.json")
            write_json(paths[-1], {**record, "better": {value: better}})
    return paths


def log(folder: Path, run: str, records: Sequence[Mapping[str, object]]) -> list[Path]:
    """Write the training log of a run."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{run}.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in records))
    return [path]


def files_of(folder: Path, curves: Mapping[str, Sequence[Sequence[float]]], **options: object) -> dict[str, list[Path]]:
    """Write the measurements of arms, by label one curve per training seed; return them by the study's names."""
    metric = str(options.get("metric", "fd"))
    arms = arms_of(list(curves), seeds=max(map(len, curves.values())))
    return {
        f"{metric}.{run}": measure(folder, run, values, **options)  # type: ignore[arg-type]
        for label, group in curves.items()
        for run, values in zip(arms[label], group, strict=False)
    }
