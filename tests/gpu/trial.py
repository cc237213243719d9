"""A real small training by the verbs of the command line, without Snakemake: data, networks, samples, numbers.

What is finished in the folder `work` is not done again, and a training that was stopped resumes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from onestep.config.reading import read_experiment

Found = Iterator[dict[str, float | str]]


def trial(
    device: torch.device,
    *,
    config: str,
    source: str,
    work: str,
    images: Mapping[str, int] | None = None,
    seeds: str = "0-1999",
    measured: Mapping[str, Mapping[str, str]],
) -> Found:
    """Prepare, train all runs in their order, sample and measure; yield speeds and numbers.

    Args:
        device: As of the other steps; the verbs use the GPU that is visible, or none.
        config: A config with one dataset, whose runs are in the order in which they are trained.
        source: The file of the dataset; a step without it is left out.
        work: Folder of all that is made.
        images: Lengths of runs in place of those of the config.
        seeds: Block of seeds of the measured images.
        measured: Samplers of the config to measure, by name, for each run: `{run: {name of the number: sampler}}`.
    """
    folder, file = Path(work), Path(source)
    if not file.exists():
        yield {"outcome": f"left out: there is no {source}"}
        return
    folder.mkdir(parents=True, exist_ok=True)
    document = yaml.safe_load(Path(config).read_text(encoding="utf-8"))
    for run, length in (images or {}).items():
        document["runs"][run] |= {"images": length, "snapshot_every": length}
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    experiment = read_experiment(path)
    (dataset,) = document["datasets"].values()
    block = {key: value for key, value in dataset.items() if key not in ("input", "references")}
    data = folder / "data.zip"
    if not data.with_suffix(".json").exists():
        _verb("prepare", "--dataset", json.dumps(block), "--source", str(file), "--output", str(data))
    weights: dict[str, Path] = {}
    for run, resolved in experiment.runs.items():
        done = folder / "runs" / run / "summary.json"
        if not done.exists():
            _verb("resolve", "--config", str(path), "--run", run, "--output", str(folder / f"{run}.yaml"))
            _train(run, resolved, experiment, weights=weights, data=data, folder=folder)
        summary = json.loads(done.read_text(encoding="utf-8"))
        yield {f"{run}.images_per_second": summary["images_seen"] / summary["seconds"]}
        weights[run] = folder / "runs" / run / "snapshots" / f"{resolved.images}.safetensors"
    ((name, features),) = experiment.features.items()
    extractor = weights[str(features.run)]
    for run, columns in measured.items():
        for column, sampler in columns.items():
            made, numbers = folder / f"{column}.npz", folder / f"{column}.json"
            chosen = json.dumps(document["samplers"][sampler])
            if not made.exists():
                _verb("sample", str(weights[run]), str(made), "--sampler", chosen, "--seeds", seeds)
            if not numbers.exists():
                network = ["--features", json.dumps(_options(document["features"][name])), "--weights", str(extractor)]
                metrics = ["--metrics", "frechet,precision_recall"]
                _verb("evaluate", str(made), str(numbers), "--reference", str(data), *network, *metrics)
            values = json.loads(numbers.read_text(encoding="utf-8"))["values"]
            yield {f"{column}.{key}": value for key, value in values.items()}


def _options(block: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in block.items() if key not in ("run", "input", "weights")}


def _train(run: str, resolved: Any, experiment: Any, *, weights: Mapping[str, Path], data: Path, folder: Path) -> None:
    words = ["--run", str(folder / f"{run}.yaml"), "--data", str(data)]
    words += ["--state", str(folder / "state"), "--output", str(folder / "runs")]
    if resolved.teacher is not None:
        words += ["--teacher", str(weights[str(experiment.teachers[resolved.teacher].run)])]
    for backbone in resolved.discriminator.backbones if resolved.discriminator is not None else ():
        words += ["--backbone", f"{backbone}={weights[str(experiment.backbones[backbone].run)]}"]
    _verb("train", *words)


def _verb(*words: str) -> None:
    """Run a verb in a process of its own. RuntimeError: It failed."""
    done = subprocess.run(
        [sys.executable, "-m", "onestep", *words], capture_output=True, text=True, check=False, env=dict(os.environ)
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise RuntimeError(f"onestep {words[0]}: exit code {done.returncode}: {last[:250]}")
