"""Runs of objective variational_score: their defaults, and what is refused before any job."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import pytest
from changed_demo import D2O, TAKEN_AWAY, demo_with, problems_at

from onestep.config import parse_experiment, run_document
from onestep.config.run import run_of
from onestep.fingerprint import training_components

ADAM = {"lr": 1e-4}
RATIO = {"name": "density_ratio", "divergence": "forward_kl", "noise": "dmd2"}
WEIGHTED = {
    f"{D2O}.objective": {"name": "variational_score", "loss": "dmd", "ratio": RATIO},
    f"{D2O}.networks": {"ratio": {"name": "ratio_unet"}},
    f"{D2O}.optimizers": {"generator": ADAM, "fake": ADAM, "ratio": ADAM},
}


def score_run(changes: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    """Return the demo with its run as one of variational score distillation, alone in its table; then the changes."""
    own = {
        f"{D2O}.objective": {"name": "variational_score"},
        f"{D2O}.discriminator": TAKEN_AWAY,
        f"{D2O}.preconditioning": TAKEN_AWAY,
        f"{D2O}.optimizers": {"generator": ADAM, "fake": ADAM},
        "samplers.one": {"name": "one_step", "sigma": 2.5},
        "tables.digits.rows.2": {"run": "digits_d2o", "sampler": "one"},
    }
    return demo_with(own | dict(changes))


@pytest.mark.parametrize("changes", [{}, WEIGHTED])
def test_defaults_are_those_of_the_objective(changes):
    experiment = parse_experiment(score_run(changes))
    document = run_document(experiment, "digits_d2o")
    assert document["preconditioning"] == "edm" and document["objective"]["sigma"] == 2.5
    assert document["optimizers"]["fake"]["betas"] == [0.0, 0.999]
    assert run_of(document).run == experiment.runs["digits_d2o"]
    components = training_components(document)
    assert (("objectives", "density_ratio") in components) is (("ratios", "ratio_unet") in components) is bool(changes)


WRONG: dict[str, tuple[dict[str, Any], str, tuple[str, ...]]] = {
    "no optimizer of the fake score": (
        {f"{D2O}.optimizers": {"generator": ADAM}},
        f"{D2O}.optimizers.fake",
        ("missing",),
    ),
    "no teacher": (
        {f"{D2O}.teacher": TAKEN_AWAY, f"{D2O}.dropout": TAKEN_AWAY, f"{D2O}.network": {"name": "song_unet"}},
        D2O,
        ("teacher",),
    ),
    "no ratio network": (WEIGHTED | {f"{D2O}.networks": {}}, D2O, ("networks.ratio",)),
    "an unknown divergence of a weight": (
        WEIGHTED
        | {f"{D2O}.objective": {"name": "variational_score", "loss": "dmd", "ratio": {**RATIO, "clip": 100.0}}},
        f"{D2O}.objective.ratio.clip",
        ("50",),
    ),
    "SiD without its weight": ({f"{D2O}.objective.loss": "sid"}, f"{D2O}.objective", ("alpha: got None",)),
    "a position outside the grid": ({f"{D2O}.objective.grid": [0.0, 1.5]}, f"{D2O}.objective.grid[1]", ("1.5",)),
    "one position": ({f"{D2O}.objective.grid": [0.5]}, f"{D2O}.objective.grid", ("2",)),
    "a sampler at another level": (
        {"samplers.one.sigma": 80.0},
        "tables.digits.rows[2]",
        ("digits_d2o by one", "sigma 80,", "expected 2.5"),
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_train_is_refused_in_one_line(case):
    changes, place, words = WRONG[case]
    line, *_ = problems_at(score_run(changes), place)
    assert all(word in line for word in words), line
