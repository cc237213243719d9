"""What the rules are told of snapshots, averages and choices among them."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import pytest

from onestep.config import parse_experiment
from onestep.fingerprint import Fingerprints
from onestep.plan import Plan
from tiny import selecting_config

CHOSEN = "digits_d2o@best-fd.frechet-one_step-0-31-ema4"


def plan_of(config):
    return Plan(parse_experiment(config), source="config.yaml", fingerprints=Fingerprints())


def options(plan, table):
    return json.loads(plan.tables.options(SimpleNamespace(table=table)))


def models(plan, table):
    return [row["model"] for row in options(plan, table)["rows"]]


def test_every_average_is_a_declared_output_of_its_run():
    (run,) = (run for run in plan_of(selecting_config()).training.runs if run.name == "digits_d2o")
    folder = "results/runs/digits_d2o/snapshots"
    assert run.snapshots == [f"{folder}/{name}.safetensors" for name in ("160", "160-ema4", "320", "320-ema4")]


def test_a_choice_waits_for_every_snapshot_of_its_average_and_its_number():
    plan, wildcards = plan_of(selecting_config()), SimpleNamespace(model=CHOSEN)
    assert models(plan, "chosen") == [CHOSEN, None]
    assert plan.choices.snapshots(wildcards) == [
        f"results/runs/digits_d2o/snapshots/{images}-ema4.safetensors" for images in (160, 320)
    ]
    assert plan.choices.measurements(wildcards) == [
        f"results/metrics/digits_d2o@{images}-ema4/one_step/0-31.fd.json" for images in (160, 320)
    ]
    assert json.loads(plan.choices.options(wildcards))["direction"] == "lower"
    assert plan.images.network(wildcards) == f"results/selections/{CHOSEN}.safetensors"
    assert plan.tables.choices(SimpleNamespace(table="chosen")) == [f"results/selections/{CHOSEN}.json"]
    assert plan.tables.choices(SimpleNamespace(table="digits")) == []


def test_tables_of_different_policies_share_no_file():
    config = selecting_config()
    config["tables"]["other"] = {**config["tables"]["chosen"], "select_seeds": "64-95"}
    config["tables"]["last"] = {**config["tables"]["chosen"], "select": "last"}
    plan = plan_of(config)
    assert models(plan, "other")[0] == "digits_d2o@best-fd.frechet-one_step-64-95-ema4"
    assert models(plan, "last")[0] == "digits_d2o@320-ema4"


def test_the_main_average_by_name_is_the_main_average():
    config = selecting_config()
    config["tables"]["chosen"]["rows"][0]["ema"] = 5000
    config["tables"]["chosen"]["rows"].append({"run": "digits_edm", "sampler": "heun"})
    rows = options(plan_of(config), "chosen")["rows"]
    assert rows[0]["model"] == "digits_d2o@best-fd.frechet-one_step-0-31"
    # A run with one snapshot has nothing to choose among.
    assert (rows[2]["model"], rows[2]["images_seen"]) == ("digits_edm@320", 320)


def test_the_curve_of_another_average_is_measured_on_its_own_snapshots():
    config = selecting_config()
    config["tables"]["chosen"]["curves"] = {"column": "fd", "seeds": "0-31"}
    inputs = plan_of(config).page.inputs(None)
    assert "results/metrics/digits_d2o@160-ema4/one_step/0-31.fd.json" in inputs
    assert f"results/grids/{CHOSEN}/one_step/0-31.npz" in inputs
    assert not any("None" in path for path in inputs)


def test_a_block_that_is_not_kept_passes_once_through_the_networks_of_all_that_is_measured_of_it():
    config = selecting_config() | {"storage": {"images": "none", "features": "none"}}
    config["features"]["second"] = {"name": "classifier", "run": "digits_backbone"}
    config["metrics"]["fd_second"] = {"name": "frechet", "features": "second"}
    config["tables"]["chosen"]["columns"]["fd_second"] = "fd_second.frechet"
    plan = plan_of(config)
    looks = {look.rule: look for look in plan.observations.looks}
    assert set(looks) == {"observe_digits", "observe_digits_and_second"}
    both = looks["observe_digits_and_second"]
    assert re.fullmatch(both.blocks, f"{CHOSEN}/one_step/0-31")
    assert not re.fullmatch(looks["observe_digits"].blocks, f"{CHOSEN}/one_step/0-31")
    # A candidate is looked at through the network of the number that chooses, and no other.
    assert re.fullmatch(looks["observe_digits"].blocks, "digits_d2o@160-ema4/one_step/0-31")
    assert json.loads(both.networks) == {"digits": {"name": "classifier"}, "second": {"name": "classifier"}}
    assert both.weight_options == " ".join(f"{n}={w}" for n, w in zip(both.features, both.weights, strict=True))
    asked = [path for table in config["tables"] for path in plan.tables.measurements(SimpleNamespace(table=table))]
    blocks = {path.removeprefix("results/metrics/").split(".fd")[0] for path in asked if ".fd" in path[-20:]}
    assert all(sum(bool(re.fullmatch(look.blocks, block)) for look in looks.values()) == 1 for block in blocks)
    wildcards = SimpleNamespace(block=f"{CHOSEN}/one_step/0-31")
    assert plan.observations.network(wildcards) == f"results/selections/{CHOSEN}.safetensors"
    assert (json.loads(plan.observations.sampler(wildcards))["name"], plan.observations.seeds(wildcards)) == (
        "one_step",
        "0-31",
    )
    first = SimpleNamespace(block="digits_d2o@160-ema4/one_step/0-31")
    assert len(plan.observations.code(first)) == 16 and not plan.images.kept and not plan.features.kept


@pytest.mark.parametrize(
    ("launch", "asked"),
    [
        ({"gpus": "gres"}, ("gpu:1", None, None)),
        ({"gpus": "gres", "gpu_type": "a100"}, ("gpu:a100:1", None, None)),
        ({"gpus": "gpus"}, (None, 1, None)),
        ({"gpus": "gpus", "gpu_type": "a100"}, (None, 1, "a100")),
        ({"gpus": "none", "gpu_type": "a100"}, (None, None, None)),
    ],
)
def test_a_job_asks_for_its_gpu_in_the_words_of_the_site(launch, asked):
    config = selecting_config()
    config["launch"] |= launch
    plan = plan_of(config)
    assert (plan.site.gres, plan.site.gpu, plan.site.gpu_model) == asked
