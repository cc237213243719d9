"""The command line: what the user can mend is one line and an exit code that is not 0."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from onestep.cli import main
from onestep.fingerprint import Fingerprints
from onestep.plan import Plan
from tiny import REPOSITORY, tiny_config, write_config

SAMPLE = ["sample", "--seeds", "0-1", "--output", "o"]
EXTRACT = ["extract", "--features", '{"name": "classifier"}', "--weights", "text.pkl", "--output", "o"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([*SAMPLE, "--weights", "absent.safetensors", "--sampler", '{"name": "one_step"}'], "absent.safetensors"),
        ([*SAMPLE, "--weights", "x", "--sampler", '{"name": "two_step"}'], "no sampling called 'two_step'"),
        (["convert", "--source", "text.pkl", "--output", "o.safetensors"], "text.pkl"),
        ([*EXTRACT, "--images", "text.pkl"], "text.pkl"),
        (["prepare", "--dataset", '{"name": "cifar10"}', "--source", "text.pkl", "--output", "o"], "text.pkl"),
        (["resolve", "--config", "absent.yaml", "--run", "r", "--output", "o"], "absent.yaml"),
    ],
)
def test_what_the_user_can_mend_is_one_line(tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.pkl").write_text("hello")
    assert main(arguments) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"onestep {arguments[0]}: ") and said in line
    assert not (tmp_path / "o").exists() and not (tmp_path / "o.safetensors").exists()


def test_every_verb_explains_itself():
    shown = subprocess.run(
        [sys.executable, "-m", "onestep", "--help"], capture_output=True, text=True, check=True
    ).stdout
    for verb in (
        "fetch",
        "prepare",
        "resolve",
        "train",
        "convert",
        "sample",
        "extract",
        "measure",
        "tabulate",
        "report",
        "status",
    ):
        assert f" {verb} " in shown


def test_a_wrong_config_stops_the_workflow_before_any_job(tmp_path):
    config = tiny_config()
    config["runs"]["digits_d2o"]["objective"]["r1_gamma"] = "1e-4"
    config["runs"]["digits_d2o_f"]["objective"]["r1_gama"] = 1.0
    write_config(tmp_path, config)
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "--snakefile",
        str(REPOSITORY / "Snakefile"),
        "--directory",
        str(tmp_path),
    ]
    stopped = subprocess.run([*command, "--cores", "1"], capture_output=True, text=True)
    assert stopped.returncode == 1
    lines = [line for line in stopped.stderr.splitlines() if line.startswith("config.yaml: ")]
    assert any("runs.digits_d2o.objective.r1_gamma: found the text '1e-4', expected a number" in line for line in lines)
    assert any("runs.digits_d2o_f.objective.r1_gama: unknown key" in line for line in lines)
    assert "Traceback" not in stopped.stderr and not (tmp_path / "results").exists()


@pytest.fixture
def plan(tmp_path):
    return Plan.read(write_config(tmp_path, tiny_config()))


def test_a_run_is_planned_from_its_own_inputs_alone(plan):
    runs = {run.name: run for run in plan.training.runs}
    assert runs["digits_edm"].weights == []
    assert runs["digits_d2o"].weights == [
        "results/teachers/digits.safetensors",
        "results/runs/digits_backbone/snapshots/320.safetensors",
    ]
    assert runs["digits_d2o"].snapshots == [f"results/runs/digits_d2o/snapshots/{n}.safetensors" for n in (160, 320)]
    assert runs["digits_d2o"].code == "" and "--code-in-spec" not in runs["digits_d2o"].options


def test_a_run_looks_through_timms_networks_and_starts_from_published_embeddings(tmp_path):
    config = tiny_config()
    config["inputs"] |= {"eye": {"file": "/data/eye.safetensors"}, "table": {"file": "/data/table.pkl"}}
    config["backbones"]["eye"] = {"timm": "resnet18.tv_in1k", "input": "eye"}
    run = config["runs"]["digits_d2o"]
    config["class_embeddings"] = {
        "published": {"input": "table"},
        "own": {"backbone": "eye", "dataset": "digits", "resolution": 64},
    }
    run["discriminator"] |= {"backbones": ["eye"], "class_embeddings": "published"}
    run["conditional"] = True
    planned = {run.name: run for run in Plan.read(write_config(tmp_path, config)).training.runs}["digits_d2o"]
    eye, table = "results/inputs/eye/eye.safetensors", "results/inputs/table/table.pkl"
    assert planned.weights == ["results/teachers/digits.safetensors", eye, table]
    assert f"--backbone eye={eye} --class-embeddings {table}" in planned.options

    run["discriminator"]["class_embeddings"] = "own"
    plan, own = Plan.read(write_config(tmp_path, config)), SimpleNamespace(class_embeddings="own")
    planned = {run.name: run for run in plan.training.runs}["digits_d2o"]
    assert planned.weights[-1] == "results/class_embeddings/own.safetensors"
    assert plan.class_embeddings.backbone(own) == eye and plan.class_embeddings.data(own) == "results/data/digits.zip"
    assert plan.class_embeddings.options(own) == "--resolution 64 --timm resnet18.tv_in1k"
    assert "onestep.evaluation.class_means" in Fingerprints().closure("onestep.cli:embed")


def test_the_metric_looks_through_another_network_than_the_discriminator(plan):
    metric = plan.features.weights(SimpleNamespace(features="digits"))
    (discriminator,) = [
        path for run in plan.training.runs if run.name == "digits_d2o" for path in run.weights if "runs/" in path
    ]
    assert metric != discriminator


def test_a_tables_options_hold_nothing_of_training(plan):
    options = json.loads(plan.tables.options(SimpleNamespace(table="digits")))
    assert set(options) == {"name", "layout", "metrics", "drawn", "rows"}
    assert [row["nfe"] for row in options["rows"]] == [5, 1, 1, 1]


def test_other_training_code_has_another_fingerprint(plan):
    codes = json.loads(plan.tables.training_code(SimpleNamespace(table="digits")))
    assert codes["digits_d2o"] == codes["digits_d2o_f"] != codes["digits_edm"]
    closure = Fingerprints().closure("onestep.training.run")
    assert "onestep.training.loop" in closure and not any(".report" in name or ".launch" in name for name in closure)
