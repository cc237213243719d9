"""A login node has the packages of envs/driver.lock, so neither torch nor timm: it plans, fetches, draws pages."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from importlib.metadata import distribution

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from login_node import on_a_login_node, pinned, said
from onestep.config import experiment_document
from onestep.plan import Plan
from onestep.plan.train import training_code
from tiny import REPOSITORY

ABSENT = ("torch", "torchvision", "timm", "torch_fidelity", "sklearn", "scipy")


@pytest.fixture
def work(tmp_path):
    """A working directory with the paper's config."""
    (tmp_path / "config.yaml").write_bytes((REPOSITORY / "config.yaml").read_bytes())
    return tmp_path


def test_the_driver_has_the_versions_of_the_whole_environment():
    driver, everything = pinned("driver.lock"), pinned("requirements.lock")
    assert driver < everything
    assert all("==" in line for line in everything)
    names = {line.partition("==")[0] for line in driver}
    assert {"snakemake", "snakemake-executor-plugin-slurm", "submitit", "pydantic", "requests"} <= names
    assert not {"torch", "torchvision", "timm", "scikit-learn", "triton"} & names
    assert not [name for name in names if name.startswith("nvidia")]


def test_the_driver_has_whatever_its_packages_require():
    names = {line.partition("==")[0] for line in pinned("driver.lock")}
    required = {canonicalize_name(each.name): name for name in names for each in requirements_of(name)}
    assert {each: by for each, by in required.items() if each not in names} == {}


def requirements_of(name):
    """Return what an installed package requires here, extras left out."""
    given = map(Requirement, distribution(name).requires or [])
    return [each for each in given if each.marker is None or each.marker.evaluate({"extra": ""})]


def test_these_tests_look_at_a_machine_without_torch(tmp_path):
    program = f"import importlib.util; print([n for n in {ABSENT} if importlib.util.find_spec(n)])"
    assert said("-c", program, within=tmp_path) == "[]\n"
    assert "No module named 'torch'" in on_a_login_node("-c", "import torch", within=tmp_path).stderr


FAMILIES = [
    "data",
    "features",
    "networks",
    "classifiers",
    "objectives",
    "discriminators",
    "ratios",
    "distances",
    "sampling",
    "metrics",
    "augmentations",
]
DESCRIBE = """
import json, sys
from onestep import components
for family in sys.argv[1:]:
    for name in components.choices(family):
        described = components.describe(family, name)
        given = {key: [str(each.hint), repr(each.default)] for key, each in described.parameters.items()}
        print(json.dumps([family, name, given, repr(described.constants), described.doc]))
"""
SUPPLIED = {"backbones", "embedding", "teacher"}  # arguments that no config gives; their types are of torch


def test_every_component_is_described_as_where_torch_is(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["-c", *FAMILIES])
    with contextlib.redirect_stdout(io.StringIO()) as here:
        exec(DESCRIBE, {})
    there = said("-c", DESCRIBE + 'assert "torch" not in sys.modules', *FAMILIES, within=tmp_path)
    pairs = zip(here.getvalue().splitlines(), there.splitlines(), strict=True)
    for complete, outlined in (map(json.loads, pair) for pair in pairs):
        for given in (complete[2], outlined[2]):
            for name in SUPPLIED & given.keys():
                del given[name]
        assert outlined == complete


CONFIGS = ["config.yaml", "demo/config.yaml"]
READ = """
import json, sys
from onestep.config import experiment_document
from onestep.plan import Plan
from onestep.plan.train import training_code
for config in sys.argv[1:]:
    plan = Plan.read(config)
    codes = {run: training_code(plan, run) for run in plan.experiment.runs}
    print(json.dumps([experiment_document(plan.experiment), codes]))
"""


@pytest.fixture(scope="module")
def read_there(tmp_path_factory):
    """What a login node reads in each config."""
    paths = [str(REPOSITORY / config) for config in CONFIGS]
    lines = said("-c", READ, *paths, within=tmp_path_factory.mktemp("read")).splitlines()
    return dict(zip(CONFIGS, map(json.loads, lines), strict=True))


@pytest.mark.parametrize("config", CONFIGS)
def test_a_config_is_read_as_where_torch_is(read_there, config):
    plan = Plan.read(REPOSITORY / config)
    codes = {run: training_code(plan, run) for run in plan.experiment.runs}
    here = json.dumps([experiment_document(plan.experiment), codes])
    assert read_there[config] == json.loads(here)


def test_a_wrong_option_is_found(work):
    config = yaml.safe_load((work / "config.yaml").read_text())
    config["samplers"]["heun"] = {"name": "heun", "steps": 1}
    run = next(iter(config["runs"].values()))
    run["objective"] = {**run["objective"], "sigmoid": 1}
    (work / "config.yaml").write_text(yaml.safe_dump(config))
    done = on_a_login_node("-m", "onestep", "status", within=work)
    assert done.returncode == 1
    assert "samplers.heun: steps: got 1" in done.stderr
    assert "objective.sigmoid" in done.stderr


def test_snakemake_plans_the_paper(work):
    arguments = ["--snakefile", REPOSITORY / "Snakefile", "--profile", REPOSITORY / "profiles" / "slurm"]
    text = said("-m", "snakemake", *map(str, arguments), "--dry-run", "--quiet", "rules", within=work)
    assert "train_imagenet64_d2o_f" in text
    assert "observe_clip_and_inception" in text


def test_the_verbs_of_a_login_node(work):
    assert "imagenet" in said("-m", "onestep", "fetch", "--list", within=work)
    assert "ffhq_d2o_f" in said("-m", "onestep", "status", within=work)
    said(
        "-m", "onestep", "resolve", "--config", "config.yaml", "--run", "ffhq_d2o", "--output", "run.yaml", within=work
    )
    assert yaml.safe_load((work / "run.yaml").read_text())["run"] == "ffhq_d2o"


def test_what_submits_and_watches_can_be_imported(tmp_path):
    files = sorted((REPOSITORY / "src" / "onestep" / "launch").glob("*.py"))
    modules = [f"onestep.launch.{path.stem}" for path in files if path.stem != "__init__"]
    assert "onestep.launch.submission" in modules
    said("-c", f"import submitit, {', '.join(modules)}", within=tmp_path)


USES = (
    "load('networks', 'song_unet')(img_resolution=32, img_channels=3)",
    "load('metrics', 'frechet')()(generated=[[1.0]], real=[[1.0]])",
    "build('sampling', {'name': 'one_step'})",
)
USE = """
import json, sys, traceback
from onestep.components import build, load
for use in sys.argv[1:]:
    try:
        exec(use)
    except BaseException:
        print(json.dumps(traceback.format_exc()))
"""


def test_what_computes_names_the_missing_package(tmp_path):
    ends = [json.loads(line) for line in said("-c", USE, *USES, within=tmp_path).splitlines()]
    assert len(ends) == len(USES)
    for end in ends:
        assert "ModuleNotFoundError: No module named 'torch'" in end, end
    done = on_a_login_node(
        "-m",
        "onestep",
        "sample",
        "--weights",
        "w",
        "--sampler",
        "{}",
        "--seeds",
        "0-1",
        "--output",
        "o",
        within=tmp_path,
    )
    assert "No module named 'torch'" in done.stderr
