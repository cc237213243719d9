"""Runs of losses on vectors of feature networks: their defaults, and what is refused before any job."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import pytest
from changed_demo import D2O, TAKEN_AWAY, demo_with, problems_at

from onestep.config import parse_experiment, run_document
from onestep.config.run import run_of
from onestep.fingerprint import training_components
from onestep.objectives.instance import Instance

INCEPTION = {"extractor": "inception", "input": "digits"}


def vector_run(changes: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    """Return the demo with its run as one of the Frechet distance, and no other in its table; then the changes."""
    own = {
        f"{D2O}.objective": {"name": "frechet", "features": {"digits": 1.0}},
        f"{D2O}.discriminator": TAKEN_AWAY,
        f"{D2O}.optimizers": {"generator": {"lr": 1e-4}},
        "runs.digits_d2o_f": TAKEN_AWAY,
        "tables.digits.rows.2": {"run": "digits_d2o", "sampler": "one_step"},
    }
    return demo_with(own | dict(changes))


@pytest.mark.parametrize("name", ["frechet", "kernel"])
def test_defaults_are_those_of_the_objective(name):
    experiment = parse_experiment(vector_run({f"{D2O}.objective.name": name}))
    document = run_document(experiment, "digits_d2o")
    assert document["objective"]["features"] == {"digits": 1.0} and document["preconditioning"] == "d2o"
    assert document["optimizers"]["generator"]["betas"] == [0.9, 0.95]
    assert "extractors" not in document
    assert run_of(document).run == experiment.runs["digits_d2o"]
    assert ("objectives", name) in training_components(document)


def test_an_extractor_is_named_in_the_document_of_its_run():
    changes = {"backbones.fid": INCEPTION, f"{D2O}.objective.features": {"digits": 1.0, "fid": 0.5}}
    document = run_document(parse_experiment(vector_run(changes)), "digits_d2o")
    assert document["extractors"] == {"fid": "inception"}
    assert run_of(document).extractors == {"fid": "inception"}


@pytest.mark.parametrize("name", ["frechet", "kernel", "drifting"])
def test_a_resolution_is_in_the_document_of_its_run_alone(name):
    network = {"backbones.net": {"timm": "tf_efficientnet_lite0.in1k", "input": "digits"}}
    objective = {"name": name, "features": {"net": 1.0}}
    plain = parse_experiment(vector_run({**network, f"{D2O}.objective": objective}))
    assert "resolution" not in run_document(plain, "digits_d2o")["objective"]
    small = parse_experiment(vector_run({**network, f"{D2O}.objective": {**objective, "resolution": 64}}))
    document = run_document(small, "digits_d2o")
    assert document["objective"]["resolution"] == 64 and run_of(document).run == small.runs["digits_d2o"]


_RING = {"name": "frechet", "features": {"digits": 1.0}, "population": "ring"}
WRONG: dict[str, tuple[dict[str, Any], str, tuple[str, ...]]] = {
    "an unknown backbone": ({f"{D2O}.objective.features": {"digit": 1.0}}, f"{D2O}.objective", ("digits",)),
    "no features": ({f"{D2O}.objective.features": {}}, f"{D2O}.objective.features", ("1",)),
    "no weight": ({f"{D2O}.objective.features": {"digits": 0.0}}, f"{D2O}.objective.features.digits", ("0",)),
    "a decay of 1": ({f"{D2O}.objective.decay": 1.0}, f"{D2O}.objective.decay", ("1",)),
    "a ring of fewer images than a step": (
        {f"{D2O}.objective": _RING | {"warm_start": 40}},
        f"{D2O}.batch",
        ("got 64", "at most 40"),
    ),
    "fewer held-out images than those of a step": (
        {f"{D2O}.objective": {"name": "kernel", "features": {"digits": 1.0}, "held_out": 40}},
        f"{D2O}.batch",
        ("got 64", "at most 40"),
    ),
    "one image": ({f"{D2O}.batch": 1}, f"{D2O}.batch", ("got 1", "at least 2")),
    "an extractor without its weights": (
        {"backbones.fid": {"extractor": "inception"}},
        "backbones.fid.input",
        ("inception",),
    ),
    "two kinds of backbone": (
        {"backbones.digits.timm": "vgg16.tv_in1k", "backbones.digits.input": "digits"},
        "backbones.digits",
        ("run and timm",),
    ),
    "a resolution of a network that is not timm's": (
        {f"{D2O}.objective.resolution": 64},
        f"{D2O}.objective.resolution",
        ("got 64", "digits"),
    ),
    "a resolution below the strides of networks": (
        {f"{D2O}.objective.resolution": 16},
        f"{D2O}.objective.resolution",
        ("got 16", "32"),
    ),
    "a sampler at another level": ({"samplers.one_step.sigma": 2.5}, "tables.digits.rows[2]", ("expected 80",)),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_train_is_refused_in_one_line(case):
    changes, place, words = WRONG[case]
    (line,) = problems_at(vector_run(changes), place)
    assert all(word in line for word in words), line


@pytest.mark.parametrize("name", ["frechet", "kernel"])
def test_an_instance_loss_is_not_added_to_one_of_all_images(name):
    beside = {"name": name, "features": {"digits": 1.0}}
    with pytest.raises(ValueError, match="beside"):
        Instance(kind="rcd", distance={"name": "l2"}, beside=beside)


def test_a_discriminator_does_not_look_through_an_extractor():
    changes = {"backbones.fid": INCEPTION, f"{D2O}.discriminator.backbones": ["fid"]}
    (line,) = problems_at(demo_with(changes), f"{D2O}.discriminator.backbones[0]")
    assert "extractor" in line
