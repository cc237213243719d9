"""A results folder as the pipeline leaves it, with invented numbers and scikit-learn's real digits."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from sklearn.datasets import load_digits

from onestep.report.table import Number, Row
from onestep.report.tabulation import tabulate
from tiny import REPOSITORY

CONFIG = (REPOSITORY / "demo" / "config.yaml").read_text(encoding="utf-8")

WEIGHTS = 189_281
TRAINED = {"digits_d2o_f": 39_700}
EVALUATIONS = {"heun": 35, "one_step": 1}
FD = {
    ("digits_edm", "heun"): 3.1,
    ("digits_edm", "one_step"): 119.0,
    ("digits_d2o", "one_step"): 1.9,
    ("digits_d2o_f", "one_step"): 2.3,
}


@dataclass(frozen=True, kw_only=True)
class Story:
    """The invented numbers: mean Frechet distance by (run, sampler), and what deviates from a plain finished demo."""

    config_text: str = CONFIG
    fd: Mapping[tuple[str, str], float] = field(default_factory=lambda: dict(FD))
    published: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    other_code: tuple[str, ...] = ()
    images: int = 160
    noisy: tuple[tuple[str, str], ...] = (("digits_edm", "one_step"),)

    @property
    def config(self) -> dict[str, Any]:
        """The parsed config."""
        return yaml.safe_load(self.config_text)


def measurement(*, model: str, sampler: str, seeds: str, metric: str, values: Mapping[str, float]) -> dict[str, Any]:
    """Return what `onestep measure` writes."""
    return {
        "model": model,
        "sampler": sampler,
        "seeds": seeds,
        "images": 2000,
        "metric": metric,
        "values": dict(values),
        "features": "digits",
        "feature_weights_sha256": "aa" * 32,
        "precision": "float32",
        "reference": {"dataset": "digits", "images": 1797, "sha256": "bb" * 32},
    }


Given = tuple[float, float | None, int, bool] | None


def row(run: str, sampler: str, *, fd: Given, recall: Given, **changes: Any) -> Row:
    """Return a measured row, its blocks all alike; a number is (mean, deviation, blocks, is best)."""
    facts = {
        "run": run,
        "sampler": sampler,
        "label": run,
        "nfe": 1,
        "dataset": "digits",
        "images_seen": 40_000,
        "snapshot": f"{run}@40000",
        "snapshot_policy": "last",
        "model": f"{run}@40000",
        "ema": 5_000.0,
        "frozen_share": 0.0,
        "numbers": {"fd": number(fd), "recall": number(recall)},
    }
    return Row(**(facts | changes))


def number(given: Given) -> Number:
    """Return a number whose blocks are all alike."""
    if given is None:
        return Number()
    mean, std, blocks, best = given
    same = dict.fromkeys(("shown", "mean", "first_block", "best_block", "worst_block"), mean)
    return Number(**same, std=std, blocks=blocks, is_best=best)


def other_method(label: str, **changes: Any) -> Row:
    """Return a row that only has published numbers."""
    nothing = dict.fromkeys(("run", "sampler", "snapshot", "snapshot_policy", "model", "ema", "images_seen"))
    given = {"label": label, "frozen_share": None} | changes
    return dataclasses.replace(row(label, "", fd=None, recall=None), **nothing, **given)


def write_results(results: Path, *, story: Story) -> Path:
    """Write everything that tables and page read, and benchmarks and config beside it; return the config's path."""
    config = story.config
    for run, options in config["runs"].items():
        _write_run(results / "runs" / run, run=run, options=options)
    for name in config["tables"]:
        _write_measurements(results, story=story, name=name)
        codes = {run: "other" if run in story.other_code else "fedcba9876543210" for run in config["runs"]}
        tabulate(table=planned(story, name=name), results=results, training_code=codes, output=results / "tables")
    _write_benchmarks(results.parent / "benchmarks")
    write(results.parent / "config.yaml", story.config_text)
    return results.parent / "config.yaml"


def planned(story: Story, *, name: str) -> dict[str, Any]:
    """Return what `onestep tabulate` gets of a table."""
    layout = story.config["tables"][name]
    return {
        "name": name,
        "layout": layout,
        "drawn": (layout.get("curves") or {}).get("column") or next(iter(layout["columns"])),
        "metrics": story.config["metrics"],
        "rows": [_planned_row(row, story=story) for row in layout["rows"]],
    }


def _planned_row(row: Mapping[str, Any], *, story: Story) -> dict[str, Any]:
    images = story.config["runs"][row["run"]]["images"]
    return {
        "run": row["run"],
        "sampler": row["sampler"],
        "label": row.get("label", row["run"]),
        "dataset": "digits",
        "nfe": EVALUATIONS[row["sampler"]],
        "images_seen": images,
        "images": None,
        "model": f"{row['run']}@{images}",
        "ema": 5_000.0,
        "published": story.published.get(row["run"], {}),
        "sources": {},
    }


def _write_measurements(results: Path, *, story: Story, name: str) -> None:
    layout = story.config["tables"][name]
    for row in layout["rows"]:
        key = (row["run"], row["sampler"])
        images = story.config["runs"][row["run"]]["images"]
        _write_samples(results, key=key, images=images, seeds=layout["seeds"][0], story=story)
        if key not in story.fd:
            continue
        for block, seeds in enumerate(layout["seeds"]):
            _write_block(results, key=key, images=images, seeds=seeds, fd=story.fd[key] * (1 + 0.015 * (block - 1)))
        if "teacher" in story.config["runs"][row["run"]]:
            for seen in (10_000, 20_000, 30_000):
                fd = story.fd[key] + 30 * math.exp(-seen / 6_000)
                _write_block(results, key=key, images=seen, seeds=layout["seeds"][0], fd=fd)


def _write_block(results: Path, *, key: tuple[str, str], images: int, seeds: str, fd: float) -> None:
    quality = 1 / (1 + fd / 30)
    values = {
        "fd": {"frechet": fd},
        "is": {"inception_score": 1 + 8.6 * quality, "inception_score_std": 0.1},
        "pr": {"precision": 0.93 * quality, "recall": 0.9 * quality**2},
    }
    model = f"{key[0]}@{images}"
    for metric, numbers in values.items():
        path = results / "metrics" / model / key[1] / f"{seeds}.{metric}.json"
        found = measurement(model=model, sampler=key[1], seeds=seeds, metric=metric, values=numbers)
        write(path, json.dumps(found))


def _write_samples(results: Path, *, key: tuple[str, str], images: int, seeds: str, story: Story) -> None:
    """Write real digits as the images of a row; noise for the rows the story calls noisy."""
    count = story.images
    digits = load_digits().images[:count] / 16
    random = np.random.default_rng(sorted(EVALUATIONS).index(key[1]) + len(key[0]))
    pixels = np.kron(digits, np.ones((2, 2)))
    if key in story.noisy:
        pixels = 0.5 + 0.35 * (np.roll(pixels, 1, axis=0) - 0.4) + 0.15 * random.standard_normal(pixels.shape)
    pixels = np.clip(pixels * 255 + 12 * random.standard_normal(pixels.shape), 0, 255).astype(np.uint8)
    path = results / "grids" / f"{key[0]}@{images}" / key[1] / f"{seeds}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, pixels=pixels[..., None], labels=np.zeros(count, np.int64), seeds=np.arange(count))


def _write_run(folder: Path, *, run: str, options: Mapping[str, Any]) -> None:
    images, trained = options["images"], TRAINED.get(run, WEIGHTS)
    every = 10_000 if "teacher" in options else images
    for seen in range(every, images + 1, every):
        write(folder / "snapshots" / f"{seen}.safetensors", "")
    summary = {
        "run": run,
        "spec": "0123456789abcdef",
        "code": "fedcba9876543210",
        "codes": ["fedcba9876543210"],
        "images_seen": images,
        "parameters": WEIGHTS,
        "trainable": trained,
        "frozen": WEIGHTS - trained,
        "frozen_share": 1 - trained / WEIGHTS,
        "seconds": images / 310,
        "restarts": 0,
        "world_size": 1,
        "device": "CPU, 2 threads",
        "torch": "2.12.1",
        "python": "3.11.2",
    }
    write(folder / "summary.json", json.dumps(summary))
    write(folder / "run.yaml", yaml.safe_dump({"run": run, **options}, sort_keys=False))
    name, phase = options["objective"]["name"], len(run)
    records = [_record(name, seen=seen, images=images, phase=phase) for seen in range(640, images + 1, 640)]
    write(folder / "log.jsonl", "".join(json.dumps(record) + "\n" for record in records))


def _record(objective: str, *, seen: int, images: int, phase: int) -> dict[str, Any]:
    done, noise = seen / images, 0.08 * math.sin(seen * seen * 12.9898 + phase)
    losses: dict[str, Any] = {objective: 0.2 + 0.8 * math.exp(-6 * done) * (1 + noise)}
    observed: dict[str, float] = {}
    if objective == "d2o":
        losses = {"generator": 0.9 + 0.5 * done + noise, "discriminator": 1.3 - 0.3 * done + noise}
        losses["r1"] = 0.02 * math.exp(-2 * done) * (1.2 + 4 * noise)
        observed = {"logits_fake": -0.4 * done + noise, "logits_real": 0.4 * done + noise}
    return {
        "images_seen": seen,
        "losses": losses,
        "observed": observed,
        "images_per_second": 310 + 40 * noise,
        "memory_mib": 812,
        "non_finite": 0,
    }


def _write_benchmarks(folder: Path) -> None:
    stages = {"train": [324.2, 131.0, 127.4, 42.0, 44.9], "sample": [61.0, 3.1, 3.0, 2.9], "prepare": [1.6]}
    stages |= {"extract": [6.1] * 12, "measure": [0.8] * 36, "tabulate": [0.9]}
    for rule, times in stages.items():
        for number, seconds in enumerate(times):
            write(folder / rule / f"{number}.tsv", f"s\th:m:s\tmax_rss\n{seconds}\t0:00:01\t812.1\n")


def write(path: Path, text: str) -> None:
    """Write a file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
