"""Components inside the options of an objective: their defaults, their problems, their files and their code."""

from __future__ import annotations

import pytest
from changed_demo import D2O, TAKEN_AWAY, demo_with, problems

from onestep.config import parse_experiment, read_experiment, run_document
from onestep.config.reading import run_backbones
from onestep.fingerprint import training_components
from tiny import REPOSITORY

FEATURES = {"name": "features", "backbone": "digits"}
LPIPS = {"name": "lpips", "trunk": "vgg", "linear": "lpips"}
CD = {"name": "instance", "kind": "cd", "steps": 16, "distance": FEATURES}
BACKBONES = {"backbones.vgg": {"timm": "vgg16.tv_in1k", "input": "digits"}, "backbones.lpips": {"input": "digits"}}


def _with(objective, **others):
    return demo_with({f"{D2O}.objective": objective, **others})


def _alone(objective, **others):
    lost = {f"{D2O}.discriminator": TAKEN_AWAY, f"{D2O}.optimizers.discriminator": TAKEN_AWAY}
    return _with(objective, **lost, **others)


def test_the_run_document_has_the_defaults_of_the_parts():
    document = run_document(parse_experiment(_with(CD | {"beside": {"name": "d2o"}})), "digits_d2o")
    gan = run_document(read_experiment(REPOSITORY / "demo" / "config.yaml"), "digits_d2o")["objective"]
    assert document["objective"]["beside"] == gan
    assert document["objective"]["distance"] == FEATURES
    assert {("objectives", "d2o"), ("distances", "features"), ("classifiers", "convnet")} <= set(
        training_components(document)
    )
    alone = run_document(parse_experiment(_alone(CD)), "digits_d2o")
    assert alone["objective"] == CD | {
        "weight": 1.0,
        "weighting": "uniform",
        "target": "student",
        "sigma": 80.0,
        "sigma_data": 0.5,
    }
    assert alone["preconditioning"] == "d2o" and list(alone["optimizers"]) == ["generator"]


_OUTSIDE = """
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Compared:
    measure: dict

    parts = {"measure": "distances"}
"""


def test_a_part_of_an_objective_from_outside_is_code_of_its_training(tmp_path, monkeypatch):
    (tmp_path / "compared.py").write_text(_OUTSIDE)
    monkeypatch.syspath_prepend(tmp_path)
    document = {"objective": {"name": "compared:Compared", "measure": {"name": "l2"}}}
    assert training_components(document) == [("objectives", "compared:Compared"), ("distances", "l2")]


def test_the_networks_of_a_distance_are_files_of_the_run():
    experiment = parse_experiment(_alone(CD | {"distance": LPIPS}, **BACKBONES))
    assert run_backbones(experiment.runs["digits_d2o"]) == ("vgg", "lpips")
    assert run_document(experiment, "digits_d2o")["timm"] == {"vgg": "vgg16.tv_in1k"}
    assert run_backbones(parse_experiment(_with(CD | {"beside": {"name": "d2o"}})).runs["digits_d2o"]) == ("digits",)


REFUSED = {
    "an option of a distance": (CD | {"distance": FEATURES | {"resolution": 0}}, "distance.resolution", "above 0"),
    "an unknown option of a part": (CD | {"distance": FEATURES | {"resolutoin": 16}}, "distance.resolutoin", "resol"),
    "an unknown distance": (CD | {"distance": {"name": "ssim"}}, "distance.name", "lpips"),
    "an option beside": (CD | {"beside": {"name": "d2o", "r1_every": 0}}, "beside.r1_every", "above 0"),
    "steps of pd": (CD | {"kind": "pd", "steps": 18}, "", "power of two"),
    "a backbone that is not there": (CD | {"distance": FEATURES | {"backbone": "vgg16"}}, "", "vgg16"),
    "a network as tensors": (CD | {"distance": LPIPS | {"linear": "vgg"}}, "", "input"),
    "tensors as a network": (CD | {"distance": FEATURES | {"backbone": "lpips"}}, "", "timm"),
}


@pytest.mark.parametrize(("objective", "place", "part"), REFUSED.values(), ids=REFUSED)
def test_a_wrong_part_is_refused_at_its_place(objective, place, part):
    changes = BACKBONES if "beside" not in objective else {}
    (line, *others) = problems((_with if "beside" in objective else _alone)(objective, **changes))
    assert line.startswith(f"config.yaml: {D2O}.objective{'.' if place else ''}{place}: ") and part in line
    assert not others


def test_tensors_are_no_backbone_of_a_discriminator():
    changes = {**BACKBONES, f"{D2O}.discriminator.backbones": ["digits", "lpips"]}
    (line,) = problems(demo_with(changes))
    assert line.startswith(f"config.yaml: {D2O}.discriminator.backbones[1]: ") and "timm" in line


def test_a_distance_needs_a_teacher_and_a_gan_loss_its_discriminator():
    (line, *_) = problems(_alone(CD | {"beside": {"name": "d2o"}}))
    assert line.startswith(f"config.yaml: {D2O}: missing `discriminator`")
    lines = problems(_with(CD))
    assert any(line.startswith(f"config.yaml: {D2O}.discriminator: ") for line in lines)
