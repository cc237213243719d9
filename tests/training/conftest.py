"""Runs small enough to be killed, resumed and split over processes: the demo's, resolved from its own config."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from onestep.cli import main
from onestep.training.assignment import Inputs
from preloaded import ONESTEP, Program
from tiny import tiny_config, write_config


@dataclass(frozen=True)
class Bench:
    """Input files of the tiny runs, and commands on them."""

    folder: Path

    def document(self, run: str, **changes) -> Path:
        """Write the run.yaml of a tiny run with some keys changed, and return its path."""
        # Here, because the tests for a GPU run where a config cannot be read.
        from onestep.config import read_experiment, run_document

        document = run_document(read_experiment(self.folder / "config.yaml"), run) | changes
        path = self.folder / f"{run}-{abs(hash(str(sorted(map(str, changes.items())))))}.yaml"
        path.write_text(yaml.safe_dump(document))
        return path

    def files(self, document: dict[str, Any]) -> Inputs:
        """Return the input files of a run's document."""
        teacher = self.folder / "teacher.safetensors" if document.get("teacher") else None
        compares = document.get("discriminator") or "features" in document["objective"]
        backbones = {"digits": self.folder / "backbone.safetensors"} if compares else {}
        data, codec = self.folder / "digits.zip", self.folder / "codec.safetensors" if document.get("codec") else None
        return Inputs(run=self.folder / "run.yaml", data=data, teacher=teacher, backbones=backbones, codec=codec)

    def arguments(self, document: Path, *, state: Path, output: Path) -> list[str]:
        """Return the command line that trains `document`."""
        run = yaml.safe_load(document.read_text())
        arguments = ["train", "--run", str(document), "--data", str(self.folder / "digits.zip")]
        if run.get("teacher"):
            arguments += ["--teacher", str(self.folder / "teacher.safetensors")]
            arguments += ["--backbone", f"digits={self.folder / 'backbone.safetensors'}"]
        if run.get("codec"):
            arguments += ["--codec", str(self.folder / "codec.safetensors")]
        return [*arguments, "--state", str(state), "--output", str(output)]

    def start(self, arguments: list[str]) -> Program:
        """Start `onestep ARGUMENTS` in a process of one thread."""
        return Program(ONESTEP, *arguments, environment={**os.environ, "OMP_NUM_THREADS": "1"})

    def run(self, arguments: list[str]) -> str:
        """Run `onestep ARGUMENTS` to its end and return what it said."""
        process = self.start(arguments)
        said, _ = process.communicate()
        assert process.returncode == 0, said
        return said


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Dataset, backbone and teacher of the tiny runs."""
    pytest.importorskip("pydantic")
    folder = tmp_path_factory.mktemp("bench")
    config = tiny_config()
    write_config(folder, config)
    source = config["inputs"]["digits"]
    assert main(["fetch", "--source", json.dumps(source), "--output", str(folder / "digits.csv.gz")]) == 0
    dataset = json.dumps({"name": "digits", "resolution": 16})
    assert (
        main(
            [
                "prepare",
                "--dataset",
                dataset,
                "--source",
                str(folder / "digits.csv.gz"),
                "--output",
                str(folder / "digits.zip"),
            ]
        )
        == 0
    )
    made = Bench(folder)
    for run, target in (("digits_backbone", "backbone"), ("digits_edm", "teacher")):
        made.run(made.arguments(made.document(run), state=folder / "state", output=folder / "runs"))
        (snapshot,) = (folder / "runs" / run / "snapshots").iterdir()
        snapshot.rename(folder / f"{target}.safetensors")
    return made
