"""Components from outside the package in a config: checked like those of the package."""

from __future__ import annotations

import copy
import json
import sys

import pytest
import yaml
from changed_demo import D2O, demo_with

from login_node import said
from onestep.config import ConfigError, parse_experiment, read_experiment, run_backbones, run_document
from onestep.config.blocks import networks_of

MODULE = '''
"""A sampler, a metric on pixels, an objective and a study from outside."""
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from onestep.objectives import AverageOf, FeatureNetwork, Fresh, Phase, Pretrained, TeacherCopy


@dataclass(frozen=True, kw_only=True)
class Euler:
    """First order."""
    steps: int
    grid: Literal["edm", "uniform"] = "edm"
    def __post_init__(self):
        if self.steps < 1:
            raise ValueError(f"steps: got {self.steps}, expected at least 1")
    @property
    def nfe(self):
        return self.steps
    @torch.no_grad()
    def __call__(self, generator, noise, condition=None, *, random=None): ...


class Sharpness:
    """On pixels alone."""
    inputs: ClassVar[tuple[str, ...]] = ("pixels",)
    values: ClassVar[Mapping[str, str]] = {"sharpness": "higher"}
    takes_statistics: ClassVar[bool] = False
    least_images: ClassVar[int] = 1
    def __call__(self, *, pixels): ...


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """A frozen teacher, an average as the target, a second network and features."""
    weight: float
    publishes: ClassVar[str] = "generator"
    samples_in: ClassVar[int | None] = 1
    def networks(self):
        return {
            "generator": Pretrained(),
            "teacher": TeacherCopy(frozen=True),
            "target": AverageOf(role="generator", half_life=1000.0),
            "critic": Fresh(family="classifiers"),
            "features": FeatureNetwork(name="digits"),
        }
    def phases(self):
        return tuple(Phase(name=role, trains=role, loss=self.loss) for role in ("generator", "critic"))
    def loss(self, networks, batch): ...


class Broken:
    """Without `values`."""
    def __call__(self, *, pixels): ...
'''


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """A folder with a module; the working directory is another one."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "my_parts.py").write_text(MODULE)
    yield tmp_path
    sys.modules.pop("my_parts", None)


CLASSIFIER = {"name": "convnet", "width": 8}
ADAM = {"name": "adam", "lr": 1.0e-3, "betas": [0.0, 0.99], "eps": 1.0e-8}
DISTILLATION = {
    "samplers.euler": {"name": "my_parts:Euler", "steps": 4},
    "metrics.sharpness": {"name": "my_parts:Sharpness"},
    "tables.digits.columns.sharpness": "sharpness.sharpness",
    f"{D2O}.objective": {"name": "my_parts:Distillation", "weight": 1},
    f"{D2O}.discriminator": None,
    f"{D2O}.networks": {"critic": CLASSIFIER},
    f"{D2O}.optimizers": {"generator": ADAM, "critic": ADAM},
}


def write(folder, changes):
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(demo_with(copy.deepcopy({**DISTILLATION, **changes})), sort_keys=False))
    return path


def test_components_beside_the_config_file_are_read(outside):
    experiment = read_experiment(write(outside, {}))
    assert dict(experiment.samplers["euler"].options) == {"steps": 4, "grid": "edm"}
    assert experiment.metrics["sharpness"].features is None
    run = experiment.runs["digits_d2o"]
    assert run.objective.options["weight"] == 1.0 and isinstance(run.objective.options["weight"], float)
    assert (run.networks["critic"].name, dict(run.networks["critic"].options)) == ("convnet", {"width": 8})
    document = run_document(experiment, "digits_d2o")
    assert document["objective"] == {"name": "my_parts:Distillation", "weight": 1.0}
    assert document["networks"] == {"critic": CLASSIFIER}


def test_backbones_of_feature_networks_count(outside):
    experiment = read_experiment(write(outside, {}))
    from my_parts import Distillation

    run = experiment.runs["digits_d2o"]
    assert run_backbones(run) == ("digits",)
    assert run_backbones(experiment.runs["digits_d2o_f"]) == ("digits",)
    assert run_backbones(experiment.runs["digits_edm"]) == ()
    declared = networks_of(Distillation(weight=1.0))
    assert {role: each.kind for role, each in declared.items()} == {
        "generator": "Pretrained",
        "teacher": "TeacherCopy",
        "target": "AverageOf",
        "critic": "Fresh",
        "features": "FeatureNetwork",
    }


def test_a_feature_network_of_timm_is_named_in_run_yaml(outside):
    (outside / "my_parts.py").write_text(MODULE.replace('FeatureNetwork(name="digits")', 'FeatureNetwork(name="vgg")'))
    vgg = {"backbones.vgg": {"timm": "vgg16_bn.tv_in1k", "input": "digits"}}
    document = run_document(read_experiment(write(outside, vgg)), "digits_d2o")
    assert document["timm"] == {"vgg": "vgg16_bn.tv_in1k"}


WRONG = {
    "an unknown option": ({"samplers.euler.stesp": 3}, "samplers.euler.stesp", "steps"),
    "a missing option": ({"samplers.euler": {"name": "my_parts:Euler"}}, "samplers.euler.steps", "missing"),
    "a wrong type": ({"samplers.euler.steps": 2.5}, "samplers.euler.steps", "2.5"),
    "a value that is none of the choices": ({"samplers.euler.grid": "cosine"}, "samplers.euler.grid", "'uniform'"),
    "what the class refuses": ({"samplers.euler.steps": 0}, "samplers.euler", "steps: got 0"),
    "no module": ({"samplers.euler.name": "my_part:Euler"}, "samplers.euler.name", "my_part"),
    "no class": ({"samplers.euler.name": "my_parts:Eular"}, "samplers.euler.name", "Euler"),
    "no contract": ({"metrics.fd.name": "my_parts:Broken"}, "metrics.fd.name", "onestep/metrics/__init__.py"),
    "features of a metric on pixels": ({"metrics.sharpness.features": "digits"}, "metrics.sharpness.features", "name"),
    "a role without its block": ({f"{D2O}.networks": {}}, D2O, "networks.critic"),
    "a block of an unknown role": (
        {f"{D2O}.networks": {"critic": CLASSIFIER, "second": CLASSIFIER}},
        f"{D2O}.networks.second",
        "critic",
    ),
    "a wrong option of a role's network": (
        {f"{D2O}.networks": {"critic": {"name": "convnet", "width": "8"}}},
        f"{D2O}.networks.critic.width",
        "whole number",
    ),
    "a role without an optimizer": ({f"{D2O}.optimizers": {"generator": ADAM}}, f"{D2O}.optimizers.critic", "critic"),
    "an optimizer of a follower": (
        {f"{D2O}.optimizers": {"generator": ADAM, "critic": ADAM, "target": ADAM}},
        f"{D2O}.optimizers.target",
        "generator, critic",
    ),
    "a discriminator that the objective does not have": (
        {f"{D2O}.discriminator": {"name": "projected", "backbones": ["digits"], "channels": 8, "resolution": 16}},
        f"{D2O}.discriminator",
        "discriminator",
    ),
}


@pytest.mark.parametrize(("changes", "place", "part"), WRONG.values(), ids=WRONG.keys())
def test_what_is_wrong_with_them_is_one_line_at_its_place(changes, place, part, outside):
    with pytest.raises(ConfigError) as caught:
        read_experiment(write(outside, changes))
    (line,) = caught.value.problems
    start = f"{outside / 'config.yaml'}: {place}: "
    assert line.startswith(start) and part in line.removeprefix(start)


def test_a_teacher_copy_needs_a_teacher(outside):
    network = demo_with({})["runs"]["digits_edm"]["network"]
    changes = {
        f"{D2O}.teacher": None,
        f"{D2O}.preconditioning": None,
        f"{D2O}.dropout": None,
        f"{D2O}.network": network,
    }
    sys.path.append(str(outside))
    with pytest.raises(ConfigError) as caught:
        parse_experiment(demo_with(copy.deepcopy({**DISTILLATION, **changes})))
    assert [line.split(": ")[1] for line in caught.value.problems] == [D2O]
    assert "`teacher`" in caught.value.problems[0]


def test_a_feature_network_is_an_entry_of_backbones(outside):
    (outside / "my_parts.py").write_text(MODULE.replace('FeatureNetwork(name="digits")', 'FeatureNetwork(name="vgg")'))
    with pytest.raises(ConfigError) as caught:
        read_experiment(write(outside, {}))
    assert [line.split(": ")[1] for line in caught.value.problems] == [f"{D2O}.objective"]
    assert "'vgg'" in caught.value.problems[0]


def test_a_login_node_reads_and_checks_them_without_torch(outside):
    path = write(outside, {})
    program = f"""
import json, sys
from onestep.config import ConfigError, experiment_document, read_experiment
print(json.dumps(experiment_document(read_experiment({str(path)!r}))))
text = open({str(path)!r}).read()
open({str(path)!r}, "w").write(text.replace("critic:", "critik:").replace("steps: 4", "steps: 0"))
try:
    read_experiment({str(path)!r})
except ConfigError as error:
    print(error)
assert "torch" not in sys.modules
"""
    from onestep.config import experiment_document

    expected = experiment_document(read_experiment(path))
    document, *lines = said("-c", program, within=outside).splitlines()
    assert json.loads(document) == expected
    places = [line.removeprefix(f"{path}: ").split(": ")[0] for line in lines]
    assert places == [f"{D2O}.networks.critik", "samplers.euler"]
