"""Time limits of jobs: arithmetic on config.yaml, and the limit of before where nothing is known."""

from __future__ import annotations

import pytest

from onestep.config import parse_experiment, read_experiment
from onestep.fingerprint import Fingerprints
from onestep.inputs import read_registry
from onestep.plan import Plan, cost
from tiny import REPOSITORY, tiny_config

SEEDS = "0-49999"


@pytest.fixture(scope="module")
def paper():
    return Plan(experiment=read_experiment(REPOSITORY / "config.yaml"), fingerprints=Fingerprints())


@pytest.mark.parametrize(
    ("model", "sampler", "least_hours", "most_hours"),
    [
        # 50,000 x 511 x 219 GFLOP: about 14 hours of an A100 at 35 % of its peak in bfloat16, 33 at 15 %.
        ("edm_imagenet64", "churn256", 24, 48),
        # 50,000 x 79 x 84.9 GFLOP in float32 without TF32.
        ("edm_ffhq_vp", "heun40", 12, 24),
        ("edm_cifar10_uncond", "heun18", 3, 6),
        ("ffhq_d2o_f@10000000", "one_step", 2, 2),
        ("released_imagenet64_d2o_f", "one_step", 2, 2),
    ],
)
def test_a_block_of_the_paper_has_the_time_that_its_operations_take(paper, model, sampler, least_hours, most_hours):
    assert 60 * least_hours <= cost.sampling_minutes(paper, f"{model}/{sampler}/{SEEDS}") <= 60 * most_hours


def test_every_block_of_the_paper_has_a_limit_by_its_operations(paper):
    assert {cost.evaluation(paper, name) is None for name in [*paper.experiment.runs, *paper.experiment.teachers]} == {
        False
    }
    longest = max(paper.features_by_block, key=lambda block: cost.sampling_minutes(paper, block))
    assert longest.split("/")[:2] == ["edm_imagenet64", "churn256"]


def test_networks_whose_operations_are_not_known_keep_the_limit_of_before():
    plan = Plan(experiment=parse_experiment(tiny_config()), fingerprints=Fingerprints())
    assert cost.sampling_minutes(plan, "digits/heun/0-31") == 12 * 60
    assert cost.extraction_minutes(plan, "digits", of={"seeds": "0-31"}) == 2 * 60


def test_features_take_longer_of_more_images(paper):
    block, all_of_imagenet = ({"seeds": SEEDS}, {"dataset": "imagenet64"})
    short, long = (cost.extraction_minutes(paper, "clip", of=each) for each in (block, all_of_imagenet))
    assert short == 2 * 60 < long <= 6 * 60


def test_every_denoiser_of_the_registry_states_its_operations():
    assert all(each.gflop for each in read_registry().values() if each.network is not None)
