"""Every study of the package is configured at both sizes, with three trainings of each arm."""

from __future__ import annotations

import pytest

from onestep import components
from onestep.config import read_experiment
from onestep.plan import measured
from tiny import REPOSITORY

OWN, FULL, SHORT = ("studies/config.yaml", "config.yaml", "studies/short.yaml")
OWN_RATIO, FULL_RATIO = ("studies/ratio.yaml", "studies/ratio_full.yaml")
OWN_ARENA, FULL_ARENA = ("studies/arena.yaml", "studies/arena_full.yaml")
OWN_NETWORKS, FULL_NETWORKS = ("trials/architectures.yaml", "studies/latents_full.yaml")
ALL = (OWN, FULL, SHORT, OWN_RATIO, FULL_RATIO, OWN_ARENA, FULL_ARENA, OWN_NETWORKS, FULL_NETWORKS)


@pytest.fixture(scope="module")
def experiments():
    return {name: read_experiment(REPOSITORY / name) for name in ALL}


@pytest.mark.parametrize(
    "configs",
    [
        (OWN, OWN_RATIO, OWN_ARENA, OWN_NETWORKS),
        (FULL, FULL_RATIO, FULL_ARENA, FULL_NETWORKS),
        (SHORT, OWN_RATIO, OWN_ARENA, OWN_NETWORKS),
    ],
)
def test_every_study_is_there(experiments, configs):
    found = {study.name for config in configs for study in experiments[config].studies.values()}
    assert found | {"images_seen"} == set(components.choices("studies"))


@pytest.mark.parametrize("config", ALL[:2] + ALL[3:])
def test_every_arm_of_trainings_has_three_seeds(experiments, config):
    for name, study in experiments[config].studies.items():
        if "least_trainings" not in study.options and "arms" in study.options:
            for label, runs in study.options["arms"].items():
                assert len({experiments[config].runs[run].seed for run in runs}) == len(runs) == 3, (name, label)


def test_those_of_the_paper_are_on_request_and_change_no_target(experiments):
    full = experiments[FULL]
    assert measured.default_studies(full) == []
    assert len(measured.default_runs(full)) == 16 < len(full.runs)
    for config in (OWN, OWN_RATIO, OWN_ARENA, OWN_NETWORKS):
        assert measured.default_runs(experiments[config]) == list(experiments[config].runs)


def test_the_short_ones_have_one_seed_and_few_images(experiments):
    tuned = [run for run in experiments[SHORT].runs.values() if run.teacher is not None]
    assert {run.seed for run in tuned} == {0} and max(run.images for run in tuned) <= 2_000
    assert len(tuned) > 30
