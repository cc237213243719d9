"""The layout of results/ and state/: every path once.

Arguments may be Snakemake wildcards (`"{model}"`) as well as values, so rules, verbs and the page share these methods.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from onestep.models import MODEL, NAME, SEEDS, Model, Selected, Snapshot, Teacher, average_suffix

_BLOCK = re.compile(
    rf"(?:samples|grids|features|metrics)/(?P<model>{MODEL})/(?P<sampler>{NAME})/(?P<seeds>{SEEDS})(?:\.{NAME})?\.\w+"
)


@dataclass(frozen=True)
class Results:
    """Paths below a results folder."""

    root: Path = Path("results")

    def input(self, name: str, filename: str) -> Path:
        """Return the file of an input."""
        return self.root / "inputs" / name / filename

    def data(self, dataset: str, suffix: str = ".zip") -> Path:
        """Return the archive of a dataset, or its card (`.json`) or contact sheet (`.png`)."""
        return self.root / "data" / f"{dataset}{suffix}"

    def teacher(self, name: str, suffix: str = ".safetensors") -> Path:
        """Return the weights of a teacher, or its architecture (`.yaml`)."""
        return self.root / "teachers" / f"{name}{suffix}"

    def codec(self, source: str, suffix: str = ".safetensors") -> Path:
        """Return the network of a codec, of an input, or its architecture (`.yaml`)."""
        return self.root / "codecs" / f"{source}{suffix}"

    def class_embeddings(self, name: str) -> Path:
        """Return a table of class embeddings that is computed from a dataset."""
        return self.root / "class_embeddings" / f"{name}.safetensors"

    def run(self, run: str, filename: str = "") -> Path:
        """Return the folder of a run, or a file in it."""
        return self.root / "runs" / run / filename

    def run_config(self, run: str) -> Path:
        """Return the resolved configuration of a run."""
        return self.run(run, "run.yaml")

    def work(self, run: str) -> Path:
        """Return what a run computes for each image, as counted without training it."""
        return self.root / "work" / f"{run}.json"

    def log(self, run: str) -> Path:
        """Return the training log of a run: one JSON record a line."""
        return self.run(run, "log.jsonl")

    def summary(self, run: str) -> Path:
        """Return the facts of a finished run; written last."""
        return self.run(run, "summary.json")

    def snapshot(self, run: str, images: int | str, ema: int | float | None = None) -> Path:
        """Return a snapshot of a run by its images seen, of its main EMA or the one with half-life `ema`.

        A float `ema` is the relative standard deviation of an average that the training keeps.
        """
        return self.run(run, f"snapshots/{images}{average_suffix(ema)}.safetensors")

    def role_weights(self, run: str, images: int | str, role: str) -> Path:
        """Return the weights of another role of a run, which its objective publishes beside the last snapshot."""
        return self.run(run, f"snapshots/{images}-{role}.safetensors")

    def watched(self, run: str, images: int | str, suffix: str = ".png") -> Path:
        """Return the grid of a snapshot that was drawn while the run trained, or a number of it (`.{metric}.json`)."""
        return self.run(run, f"watch/{images}{suffix}")

    def weights(self, model: Model) -> Path:
        """Return the weights of a model."""
        match model:
            case Teacher(name=name):
                return self.teacher(name)
            case Snapshot(ema=float()):
                return self.average(model)
            case Snapshot(name=run, images=images, ema=ema):
                return self.snapshot(run, images, ema)
            case Selected():
                return self.selection(model)

    def average(self, model: Snapshot | str) -> Path:
        """Return the weights of an average that is made of those with power-function profiles."""
        return self.root / "averages" / f"{model}.safetensors"

    def selection(self, model: Selected | str, suffix: str = ".safetensors") -> Path:
        """Return the weights of a selected snapshot, or the record of its selection (`.json`)."""
        return self.root / "selections" / f"{model}{suffix}"

    def samples(self, model: Model | str, sampler: str, seeds: str) -> Path:
        """Return the images of one seed block, uint8 [N, H, W, C]."""
        return self.block_samples(block(model, sampler, seeds))

    def block_samples(self, name: str) -> Path:
        """Return the same by the name of the block."""
        return self.root / "samples" / f"{name}.npz"

    def grid(self, model: Model | str, sampler: str, seeds: str) -> Path:
        """Return the first images of one seed block."""
        return self.block_grid(block(model, sampler, seeds))

    def block_grid(self, name: str) -> Path:
        """Return the same by the name of the block."""
        return self.root / "grids" / f"{name}.npz"

    def features(self, model: Model | str, sampler: str, seeds: str, features: str) -> Path:
        """Return the features of one seed block."""
        return self.block_features(block(model, sampler, seeds), features)

    def block_features(self, name: str, features: str) -> Path:
        """Return the same by the name of the block."""
        return self.root / "features" / f"{name}.{features}.npz"

    def real_features(self, dataset: str, features: str) -> Path:
        """Return the features of a dataset's images."""
        return self.root / "features" / f"{dataset}.{features}.npz"

    def reference_features(self, name: str, features: str) -> Path:
        """Return the features of an input with real images."""
        return self.root / "features" / "reference" / f"{name}.{features}.npz"

    def metric(self, model: Model | str, sampler: str, seeds: str, metric: str) -> Path:
        """Return the values of one metric of one seed block."""
        return self.block_metric(block(model, sampler, seeds), metric)

    def block_metric(self, name: str, metric: str) -> Path:
        """Return the same by the name of the block."""
        return self.root / "metrics" / f"{name}.{metric}.json"

    def reference_check(self, dataset: str, metric: str) -> Path:
        """Return the values of one metric of a dataset's own images against its published reference."""
        return self.root / "references" / f"{dataset}.{metric}.json"

    def table(self, name: str, suffix: str) -> Path:
        """Return a table as `.json`, `.csv`, `.md`, `.tex` or `.svg`, or their digests (`.sha256`)."""
        return self.root / "tables" / f"{name}{suffix}"

    def study(self, name: str, suffix: str) -> Path:
        """Return a study as `.json`, `.npz`, `.svg` or `.md`."""
        return self.root / "studies" / f"{name}{suffix}"

    @property
    def report(self) -> Path:
        """The results page."""
        return self.root / "report" / "index.html"

    def samples_picture(self, table: str) -> Path:
        """Return the picture of a table's samples, which is written beside the page."""
        return self.report.parent / "samples" / f"{table}.png"


def block(model: Model | str, sampler: str, seeds: str) -> str:
    """Return the name of one seed block of a model: `{model}/{sampler}/{seeds}`."""
    return f"{model}/{sampler}/{seeds}"


def identity_at(path: Path) -> dict[str, str]:
    """Return `model`, `sampler` and `seeds` of a file of one seed block by its place; empty for another place.

    A file contains its identity; its place is only compared with it.
    """
    found = _BLOCK.fullmatch("/".join(path.absolute().parts[-4:]))
    return found.groupdict() if found else {}


@dataclass(frozen=True)
class State:
    """Paths below the folder of training states; nothing here is the output of a rule."""

    root: Path = Path("state")

    def run(self, run: str) -> Path:
        """Return the folder of a run; it has a folder for each run hash."""
        return self.root / run

    def work(self, run: str, spec: str) -> Path:
        """Return the work folder of a run with one run hash."""
        return self.run(run) / spec

    @property
    def cache(self) -> Path:
        """The folder of decoded images that exceed the memory."""
        return self.root / ".cache"
