"""Runs of easy_consistency, relativistic and dmd2, and of teacher_features: what they resolve to, what is refused."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import pytest
from changed_demo import D2O, TAKEN_AWAY, demo_with, problems_at

from onestep.config import parse_experiment, run_document
from onestep.config.run import run_of
from onestep.fingerprint import training_components

ADAM = {"lr": 1e-4}
ALONE = {"tables.digits.rows.2": {"run": "digits_d2o", "sampler": "one_step"}}
HEADS = {"name": "teacher_features"}
RUNS: dict[str, dict[str, Any]] = {
    "easy_consistency": {
        f"{D2O}.objective": {"name": "easy_consistency", "stage_images": 1000},
        f"{D2O}.discriminator": TAKEN_AWAY,
        f"{D2O}.preconditioning": TAKEN_AWAY,
        f"{D2O}.optimizers": {"generator": {"name": "radam", **ADAM}},
    },
    "relativistic": {f"{D2O}.objective": {"name": "relativistic"}},
    "dmd2": {
        f"{D2O}.objective": {"name": "dmd2"},
        f"{D2O}.discriminator": HEADS,
        f"{D2O}.preconditioning": TAKEN_AWAY,
        f"{D2O}.optimizers": {"generator": ADAM, "fake": ADAM, "discriminator": ADAM},
    },
    "ladd": {f"{D2O}.discriminator": {**HEADS, "levels": [0]}},
}


def peer_run(name: str, changes: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    """Return the demo with its run as one of another objective, alone in its table; then the changes."""
    own = {place: copy.deepcopy(value) if isinstance(value, dict) else value for place, value in RUNS[name].items()}
    return demo_with(ALONE | own | dict(changes))


@pytest.mark.parametrize("name", RUNS)
def test_a_run_of_it_is_resolved_and_read_back(name):
    experiment = parse_experiment(peer_run(name))
    document = run_document(experiment, "digits_d2o")
    assert run_of(document).run == experiment.runs["digits_d2o"]
    law, beta = {"easy_consistency": ("edm", 0.999), "dmd2": ("edm", 0.999)}.get(name, ("d2o", 0.99))
    assert document["preconditioning"] == law and document["objective"]["sigma"] == 80.0
    assert document["optimizers"]["generator"]["betas"][1] == beta
    components = training_components(document)
    assert (("discriminators", "teacher_features") in components) is (name in ("dmd2", "ladd"))


SCRATCH = {f"{D2O}.teacher": TAKEN_AWAY, f"{D2O}.dropout": TAKEN_AWAY, f"{D2O}.network": {"name": "song_unet"}}
WRONG: dict[str, tuple[str, dict[str, Any], str, tuple[str, ...]]] = {
    "a base of 1": ("easy_consistency", {f"{D2O}.objective.q": 1.0}, f"{D2O}.objective.q", ("1.0",)),
    "a stage of no images": (
        "easy_consistency",
        {f"{D2O}.objective.stage_images": 0},
        f"{D2O}.objective.stage_images",
        ("0",),
    ),
    "a norm beside its square": (
        "easy_consistency",
        {f"{D2O}.objective.squared": True, f"{D2O}.objective.c": 0.1},
        f"{D2O}.objective",
        ("squared",),
    ),
    "an unknown weighting": (
        "easy_consistency",
        {f"{D2O}.objective.weighting": "snr"},
        f"{D2O}.objective.weighting",
        ("snr", "interval"),
    ),
    "a negative penalty": ("relativistic", {f"{D2O}.objective.gamma": -1.0}, f"{D2O}.objective.gamma", ("-1",)),
    "an end without a length": (
        "relativistic",
        {f"{D2O}.objective.gamma_final": 0.1},
        f"{D2O}.objective",
        ("schedule_images",),
    ),
    "no discriminator": ("relativistic", {f"{D2O}.discriminator": TAKEN_AWAY}, D2O, ("discriminator",)),
    "another discriminator than on inner maps": (
        "dmd2",
        {f"{D2O}.discriminator": {"name": "stylegan2"}},
        f"{D2O}.discriminator.name",
        ("stylegan2", "teacher_features"),
    ),
    "no optimizer of the heads": (
        "dmd2",
        {f"{D2O}.optimizers": {"generator": ADAM, "fake": ADAM}},
        f"{D2O}.optimizers.discriminator",
        ("missing",),
    ),
    "a map that the teacher has not": (
        "ladd",
        {f"{D2O}.discriminator.levels": [7]},
        f"{D2O}.discriminator",
        ("levels: got [7]",),
    ),
    "no teacher": ("ladd", SCRATCH, f"{D2O}.discriminator.name", ("no teacher",)),
    "a position outside the grid": (
        "ladd",
        {f"{D2O}.discriminator.grid": [0.5, 2.0]},
        f"{D2O}.discriminator.grid[1]",
        ("2.0",),
    ),
    "a sampler at another level": (
        "dmd2",
        {"samplers.one_step.sigma": 40.0},
        "tables.digits.rows[2]",
        ("sigma 40,", "expected 80"),
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_train_is_refused_in_one_line(case):
    name, changes, place, words = WRONG[case]
    line, *_ = problems_at(peer_run(name, changes), place)
    assert all(word in line for word in words), line


def test_pairs_are_made_by_samplers_that_add_no_noise():
    changes = {
        f"{D2O}.objective": {"name": "paired_regression", "distance": {"name": "l2"}},
        f"{D2O}.discriminator": TAKEN_AWAY,
        f"{D2O}.optimizers": {"generator": ADAM},
        f"{D2O}.pairs": {"sampler": "two", "seeds": ["100000-100099"]},
        "samplers.two": {"name": "chain", "noise": "new"},
    }
    (line, *_) = problems_at(demo_with(ALONE | changes), f"{D2O}.pairs.sampler")
    assert "noise" in line
