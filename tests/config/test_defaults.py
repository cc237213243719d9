"""Published constants are defaults: a config without them is the config with them."""

from __future__ import annotations

from typing import Any

import yaml
from changed_demo import TAKEN_AWAY, demo_with

from onestep.config import parse_experiment, run_document

RUN = ("precision", "compile", "non_finite_limit", "ema.ramp_up", "ema.others")
D2O = (*RUN, "preconditioning", "dropout", "freeze", "seed")
ADAM = ("name", "betas", "eps")
DEFAULTS = {
    "digits_backbone": (*RUN, "conditional", "snapshot_every", *(f"optimizers.classifier.{key}" for key in ADAM)),
    "digits_edm": (
        *RUN,
        "seed",
        "snapshot_every",
        *(f"objective.{key}" for key in ("p_mean", "p_std", "sigma_data")),
        *(f"network.{key}" for key in ("embedding_type", "encoder_type", "channel_mult_noise", "preconditioning")),
        *(f"optimizers.generator.{key}" for key in ADAM),
    ),
    "digits_d2o": (
        *D2O,
        *(f"objective.{key}" for key in ("loss", "sigma", "rows_per_rank", "r1_gamma", "r1_every", "r1_gradient")),
        *(f"discriminator.{key}" for key in ("batch_norm", "fold_batch_norm", "projection")),
        *(f"optimizers.{role}.{key}" for role in ("generator", "discriminator") for key in ADAM),
    ),
}
OTHERS = (
    *(f"samplers.heun.{key}" for key in ("steps", "sigma_min", "sigma_max", "rho")),
    "samplers.one_step.sigma",
    "metrics.is.splits",
    *(f"metrics.pr.{key}" for key in ("neighbours", "memory_mib", "arithmetic")),
    "mirrors",
    "container",
    "storage",
    "rerun",
    "datasets.digits.references",
)


def test_a_config_without_the_published_constants_trains_the_same_runs() -> None:
    left_out = {f"runs.{run}.{key}": TAKEN_AWAY for run, keys in DEFAULTS.items() for key in keys}
    short = demo_with(left_out | dict.fromkeys(OTHERS, TAKEN_AWAY))
    for run in DEFAULTS:
        assert _run_yaml(short, run) == _run_yaml(demo_with({}), run)


def _run_yaml(document: dict[str, Any], run: str) -> str:
    return yaml.safe_dump(run_document(parse_experiment(document), run), sort_keys=False)


def test_betas_and_law_are_those_that_the_objective_publishes() -> None:
    d2o = "runs.digits_d2o"
    changes = dict.fromkeys([f"{d2o}.preconditioning", f"{d2o}.optimizers.generator.betas"], TAKEN_AWAY)
    runs = parse_experiment(demo_with(changes | {"runs.digits_edm.optimizers.generator": {"lr": 0.1}})).runs
    assert runs["digits_d2o"].preconditioning == "d2o"
    assert runs["digits_d2o"].optimizers["generator"].betas == (0.0, 0.99)
    assert runs["digits_edm"].optimizers["generator"].betas == (0.9, 0.999)


def test_a_table_is_titled_by_its_name_where_it_has_no_title() -> None:
    assert parse_experiment(demo_with({"tables.digits.title": TAKEN_AWAY})).tables["digits"].title == "digits"


def test_a_teachers_weights_may_be_named_by_the_former_key() -> None:
    found = [
        parse_experiment(demo_with({"teachers.mine": {key: "digits"}})).teachers["mine"].input
        for key in ("weights", "pickle")
    ]
    assert found == ["digits", "digits"]
