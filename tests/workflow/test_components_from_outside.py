"""Components from outside the package, one file each: objectives, a network, a dataset, a metric, a study."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from preloaded import ONESTEP, Program
from tiny import REPOSITORY, tiny_config, write_config

_MODULES = Path(__file__).parent / "outside"
_ADAM = {"name": "adam", "lr": 1.0e-3, "betas": [0.5, 0.99], "eps": 1.0e-8}
TRAINED = ("stripes_d2o", "stripes_cd", "stripes_dm")


def outside_config() -> dict[str, Any]:
    """Return a config whose components are modules beside it, but for the classifier and the GAN objective."""
    config = tiny_config()
    runs = config["runs"]
    lengths = {"dataset": "stripes", "batch": 16, "images": 160, "snapshot_every": 80}
    config["inputs"] = {"stripes": {"file": "stripes.txt"}}
    config["datasets"] = {"stripes": {"name": "stripes:Stripes", "input": "stripes", "resolution": 16}}
    config["teachers"] = {"stripes": {"run": "stripes_edm"}}
    config["backbones"] = {"stripes": {"run": "stripes_backbone"}}
    config["features"] = {"stripes": {"name": "classifier", "run": "stripes_backbone"}}
    teacher = {
        **runs["digits_edm"],
        **lengths,
        "network": {"name": "transformer:SmallTransformer", "preconditioning": "edm", "width": 16, "depth": 2},
    }
    d2o = {**runs["digits_d2o"], **lengths, "teacher": "stripes", "freeze": ["mixing"]}
    d2o["discriminator"] = {**d2o["discriminator"], "backbones": ["stripes"]}
    plain = {key: value for key, value in d2o.items() if key not in ("discriminator", "freeze")}
    config["runs"] = {
        "stripes_backbone": {**runs["digits_backbone"], **lengths},
        "stripes_edm": teacher,
        "stripes_d2o": d2o,
        "stripes_cd": {
            **plain,
            "objective": {"name": "consistency:ConsistencyDistillation", "levels": 6},
            "optimizers": {"generator": _ADAM},
        },
        "stripes_dm": {
            **plain,
            "objective": {"name": "matching:DistributionMatching", "every": 5},
            "optimizers": {"generator": _ADAM, "fake": _ADAM},
        },
    }
    config["metrics"] = {
        "fd": {"name": "frechet", "features": "stripes"},
        "light": {"name": "brightness:Brightness", "white": 254.0},
    }
    config["tables"] = {
        "stripes": {
            "title": "Stripes",
            "dataset": "stripes",
            "seeds": ["0-31", "32-63"],
            "columns": {"fd": "fd.frechet", "light": "light.brightness", "contrast": "light.contrast"},
            "rows": [
                {"run": "stripes_edm", "sampler": "heun"},
                *({"run": run, "sampler": "one_step"} for run in TRAINED),
            ],
        }
    }
    config["studies"] = {
        "moved": {
            "name": "weights_moved:WeightsMoved",
            "teacher": "stripes",
            "model": "stripes_cd@160",
            "run": "stripes_cd",
        }
    }
    config["launch"]["runs"] = {}
    return config


def environment(work: Path) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PYTHONPATH": str(REPOSITORY / "src"), "PATH": path, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder after `snakemake` ran the whole of it."""
    folder = tmp_path_factory.mktemp("outside")
    for module in _MODULES.glob("*.py"):
        shutil.copy(module, folder)
    draws = random.Random(0)
    lines = (f"{draws.randrange(2)} {draws.uniform(0, 6.28):.4f}" for _ in range(96))
    (folder / "stripes.txt").write_text("\n".join(lines) + "\n")
    write_config(folder, outside_config())
    once = Path(__file__).with_name("imported_once.py")
    command = [sys.executable, once, sys.executable, "-m", "snakemake", "--snakefile", str(REPOSITORY / "Snakefile")]
    done = subprocess.run(
        [*command, "--directory", folder, "--cores", "2", "--scheduler", "greedy"],
        env=environment(folder),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_table_has_the_metric_on_pixels(work: Path) -> None:
    rows = json.loads((work / "results/tables/stripes.json").read_text())
    assert [row["run"] for row in rows] == ["stripes_edm", *TRAINED]
    for row in rows:
        blocks = [
            np.load(work / f"results/samples/{row['run']}@160/{row['sampler']}/{seeds}.npz")["pixels"]
            for seeds in ("0-31", "32-63")
        ]
        expected = np.mean([block.astype(np.float64).mean() / 254 for block in blocks])
        assert row["metrics"]["light"] == pytest.approx(expected, rel=1e-12)
        assert np.isfinite(row["metrics"]["fd"])


def test_the_network_is_frozen_by_its_own_level(work: Path) -> None:
    before = load_file(work / "results/teachers/stripes.safetensors")
    after = load_file(work / "results/runs/stripes_d2o/snapshots/160.safetensors")
    frozen = {name for name in after if ".proj." in name or ".fc1." in name or ".fc2." in name}
    assert len(frozen) == 12 and all((before[name] == after[name]).all() for name in frozen)
    assert any((before[name] != after[name]).any() for name in after.keys() - frozen)
    summary = json.loads((work / "results/runs/stripes_d2o/summary.json").read_text())
    assert summary["frozen"] == sum(after[name].size for name in frozen)


def test_the_study_has_figure_verdict_and_a_place_on_the_page(work: Path) -> None:
    record = json.loads((work / "results/studies/moved.json").read_text())
    assert record["verdict"] == "confirmed" and record["control"]["mean"] == 0 < record["numbers"]["mean"]
    assert (work / "results/studies/moved.svg").read_text().lstrip().startswith("<")
    assert record["question"] in (work / "results/report/index.html").read_text()


@pytest.mark.long
def test_nothing_runs_twice_and_an_edited_module_runs_again_what_uses_it(work: Path, tmp_path: Path) -> None:
    folder = tmp_path / "work"
    shutil.copytree(work, folder, symlinks=True)
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(REPOSITORY / "Snakefile"), "--directory", folder]

    def dry() -> str:
        done = subprocess.run([*command, "--dry-run"], env=environment(folder), capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    assert "Nothing to be done" in dry()
    module = folder / "brightness.py"
    module.write_text(module.read_text().replace("/ self.white", "/ self.white * 1.0"))
    text = dry()
    assert "measure" in text and "train_" not in text and "rule sample" not in text


def train(work: Path, run: str, target: Path, *, processes: int, kill: bool) -> dict[str, bytes]:
    """Train a run into `target`, killed once after its first state if asked; return its snapshots."""
    document = yaml.safe_load((work / f"results/runs/{run}/run.yaml").read_text())
    options = ["--run", f"results/runs/{run}/run.yaml", "--data", "results/data/stripes.zip"]
    options += ["--teacher", "results/teachers/stripes.safetensors"] if document.get("teacher") else []
    if document.get("discriminator"):
        options += ["--backbone", "stripes=results/runs/stripes_backbone/snapshots/160.safetensors"]
    options += ["--state", str(target / "state"), "--output", str(target / "runs"), "--state-seconds", "0"]
    options += ["--processes", str(processes)]

    def start() -> Program:
        return Program(ONESTEP, "train", *options, environment=environment(work), folder=work)

    if kill:
        process = start()
        while not list(target.glob(f"state/{run}/*/state-*")):
            assert process.poll() is None, "the run ended before its first state"
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    process = start()
    said, _ = process.communicate()
    assert process.returncode == 0, said
    summary = json.loads((target / f"runs/{run}/summary.json").read_text())
    assert summary["restarts"] == int(kill), summary
    return {path.name: path.read_bytes() for path in sorted((target / f"runs/{run}/snapshots").iterdir())}


@pytest.mark.parametrize(
    ("run", "processes"),
    [pytest.param("stripes_dm", 1, marks=pytest.mark.long), pytest.param("stripes_cd", 2, marks=pytest.mark.long)],
)
def test_a_killed_run_ends_with_the_same_bytes(work: Path, tmp_path: Path, run: str, processes: int) -> None:
    if processes == 1:
        folder = work / f"results/runs/{run}/snapshots"
        undisturbed = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    else:
        undisturbed = train(work, run, tmp_path / "undisturbed", processes=processes, kill=False)
    assert train(work, run, tmp_path / "killed", processes=processes, kill=True) == undisturbed
