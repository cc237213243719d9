"""Metrics against the images of another run: which images these are, in the plan and in the records."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from onestep.archive import write_arrays
from onestep.config import ConfigError, parse_experiment
from onestep.evaluation.measurement import write_measurement
from onestep.files import read_json
from onestep.fingerprint import Fingerprints
from onestep.metrics.frechet import FrechetDistance
from onestep.plan import Plan, measure, report
from onestep.plan.measured import model_named
from onestep.records import differing, read_measurement
from tiny import tiny_config

SAMPLE = {"run": "digits_d2o", "sampler": "one_step"}


def config_with(against=SAMPLE, *, rows=(), runs=None, **changes):
    """Return the tiny config with a metric `rel` against generated images, as a column of its table."""
    config = tiny_config()
    config["metrics"]["rel"] = {"name": "frechet", "features": "digits", "against": dict(against)}
    config["tables"]["digits"]["columns"]["rel"] = "rel.frechet"
    config["tables"]["digits"]["rows"] += rows
    config["runs"] |= runs or {}
    return config | changes


def family(name, **changes):
    """Return a family of three trainings of the demo's D2O."""
    return {name: {"base": "digits_d2o", "vary": {"seed": [0, 1, 2]}, **changes}}


def plan_of(config):
    return Plan(experiment=parse_experiment(config), fingerprints=Fingerprints())


def real(plan, model, seeds="0-31", metric="rel"):
    (path,) = measure.metric_files(plan, model, "one_step", seeds, metric)["real"]
    return str(path)


def test_it_compares_the_same_seeds_of_the_last_snapshot():
    plan = plan_of(config_with())
    assert real(plan, "digits_d2o_f@320") == "results/features/digits_d2o@320/one_step/0-31.digits.npz"
    assert real(plan, "digits_d2o_f@160", "32-63") == "results/features/digits_d2o@320/one_step/32-63.digits.npz"
    assert real(plan, "digits_d2o_f@320", metric="fd") == "results/features/digits.digits.npz"
    assert "digits_d2o@320/one_step/0-31" in plan.features_by_block


def test_stated_seeds_and_teachers():
    plan = plan_of(config_with(SAMPLE | {"seeds": "100-131"}))
    assert real(plan, "digits_d2o@320") == "results/features/digits_d2o@320/one_step/100-131.digits.npz"
    assert plan.features_by_block["digits_d2o@320/one_step/100-131"] == {"digits"}
    plan = plan_of(config_with({"teacher": "digits", "sampler": "heun"}))
    assert real(plan, "digits_d2o@320") == "results/features/digits/heun/0-31.digits.npz"


def test_of_a_family_it_is_the_member_with_the_training_seed_and_of_a_member_the_next():
    rows = [{"run": "two", "sampler": "one_step"}, {"run": "one", "sampler": "one_step"}]
    rows.append({"teacher": "digits", "sampler": "one_step"})
    runs = family("one") | family("two", freeze=["conv"])
    plan = plan_of(config_with({"run": "one", "sampler": "one_step"}, rows=rows, runs=runs))
    for seed in range(3):
        assert f"/one.seed={seed}@320/" in real(plan, f"two.seed={seed}@320")
        assert f"/one.seed={(seed + 1) % 3}@320/" in real(plan, f"one.seed={seed}@320")
    assert "/one.seed=0@320/" in real(plan, "digits")  # a teacher has no training seed here
    floor = {"run": "one", "sampler": "one_step", "seeds": "100-131"}
    plan = plan_of(config_with(floor, rows=rows, runs=runs))
    assert "/one.seed=1@320/one_step/100-131" in real(plan, "one.seed=1@320")


def test_the_reference_reruns_no_training_and_is_a_parameter_of_tables_alone():
    plan, plain = plan_of(config_with()), plan_of(tiny_config())
    assert plan.options("metrics", "rel") == plain.options("metrics", "fd")
    options = json.loads(report.table_options(plan, "digits"))
    assert options["metrics"]["rel"]["against"] == SAMPLE and "against" not in options["metrics"]["fd"]
    files = measure.block_options(plan, "digits_d2o_f@320/one_step/0-31", ["fd", "rel"])
    assert json.loads(files)["rel"]["real"] == "results/features/digits_d2o@320/one_step/0-31.digits.npz"
    wildcards = SimpleNamespace(items=lambda: [("model", "digits_d2o_f@320"), ("metric", "rel")])
    assert measure.metric_file_options(plan, wildcards, {"real": "x.npz"}) == "--real x.npz"


def test_a_study_may_name_a_run_for_its_last_snapshot():
    experiment = parse_experiment(tiny_config())
    assert str(model_named(experiment, "digits_d2o")) == "digits_d2o@320"
    assert str(model_named(experiment, "digits_d2o@160")) == "digits_d2o@160"
    assert str(model_named(experiment, "digits")) == "digits"


CHAIN = {"base": "digits_d2o", "objective": {"steps": 2, "middle": 0.5}}
TWO = {"name": "chain", "steps": 2, "middle": 0.5}
STUDY = {
    "name": "images_seen",
    "runs": ["two"],
    "sampler": "one_step",
    "metric": "fd",
    "value": "frechet",
    "seeds": ["0-31", "32-63"],
}


def with_chain(*, row="two", study=None, against=None, **sampler):
    config = tiny_config()
    config["runs"]["two"] = CHAIN
    config["samplers"]["two"] = TWO | sampler
    config["tables"]["digits"]["rows"].append({"run": "two", "sampler": row})
    if against is not None:
        config["metrics"]["rel"] = {"name": "frechet", "features": "digits", "against": against}
    if study is not None:
        config["studies"] = {"gain": study}
    return config


def test_a_chain_is_a_row_with_its_nfe():
    plan = plan_of(with_chain(middle=0.8))  # another middle than in training is a choice
    row = report.table_rows(plan.experiment, "digits")[-1]
    assert (row["run"], row["sampler"], row["nfe"]) == ("two", "two", 2)


REFUSED = {
    "a chain in one step": (with_chain(row="one_step"), "tables.digits.rows[4]", "two by one_step"),
    "a chain by a solver": (with_chain(row="heun"), "tables.digits.rows[4]", "heun"),
    "a chain of other steps": (with_chain(steps=3, middle=None), "tables.digits.rows[4]", "chain of 3 steps"),
    "a study of a chain": (with_chain(study=STUDY), "studies.gain", "two by one_step"),
    "a reference in one step": (
        with_chain(against={"run": "two", "sampler": "one_step"}),
        "metrics.rel.against.sampler",
        "steps: 2",
    ),
    "neither run nor teacher": (config_with({"sampler": "heun"}), "metrics.rel.against", "run, teacher"),
    "an unknown run": (config_with(SAMPLE | {"run": "digits_d3o"}), "metrics.rel.against.run", "mean digits_d2o"),
    "a classifier": (config_with(SAMPLE | {"run": "digits_metric"}), "metrics.rel.against.run", "denoiser"),
    "an unknown teacher": (config_with({"teacher": "x", "sampler": "heun"}), "metrics.rel.against.teacher", "digits"),
    "an unknown sampler": (config_with(SAMPLE | {"sampler": "x"}), "metrics.rel.against.sampler", "heun"),
    "an unknown key": (config_with(SAMPLE | {"seed": 1}), "metrics.rel.against.seed", "mean seeds"),
    "a block backwards": (config_with(SAMPLE | {"seeds": "9-2"}), "metrics.rel.against.seeds", "first-last"),
    "one image": (config_with(SAMPLE | {"seeds": "500-500"}), "metrics.rel.against.seeds", "at least 2"),
    "the measured images": (config_with(SAMPLE | {"seeds": "16-31"}), "tables.digits.rows[2]", "overlap"),
    "a metric without real images": (
        tiny_config() | {"metrics": tiny_config()["metrics"] | {"is": {"name": "inception_score", "against": SAMPLE}}},
        "metrics.is.against",
        "unknown key",
    ),
    "a number while it trains": (config_with(watch={"numbers": {"rel": 64}}), "watch.numbers.rel", "generated"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_by_its_place(case):
    config, place, part = REFUSED[case]
    with pytest.raises(ConfigError) as caught:
        parse_experiment(config)
    (line,) = [line for line in caught.value.problems if line.startswith(f"config: {place}: ")]
    assert part in line


def _features(folder, model, seeds, *, mean):
    path = folder / "features" / model / "one_step" / f"{seeds}.digits.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    first, last = map(int, seeds.split("-"))
    rows = np.random.default_rng(first).standard_normal((last - first + 1, 4)).astype(np.float32) + mean
    about = {"images": len(rows), "pixels_sha256": f"{model}{seeds}", "weights_sha256": "a" * 64, "features": "digits"}
    write_arrays(
        path, {"features": rows}, about=about | {"subject": {"model": model, "sampler": "one_step", "seeds": seeds}}
    )
    return path


def test_a_record_names_the_snapshot_and_the_seeds_that_it_compares_with(tmp_path):
    folder, found = tmp_path / "results", []
    for seed, seeds in ((0, "0-99"), (1, "100-199")):
        generated = _features(folder, f"two.seed={seed}@64", seeds, mean=np.float32(1))
        other = _features(folder, f"one.seed={seed}@128", seeds, mean=np.float32(0))
        output = folder / "metrics" / f"two.seed={seed}@64" / "one_step" / f"{seeds}.rel.json"
        write_measurement(FrechetDistance(), name="rel", options={}, generated=generated, real=other, output=output)
        found.append(read_measurement(output))
        reference = {"model": f"one.seed={seed}@128", "sampler": "one_step", "seeds": seeds}
        assert found[-1]["reference"] == reference | {"images": 100, "sha256": f"one.seed={seed}@128{seeds}"}
        # The same noise, moved by 1 in each of 4 features.
        assert found[-1]["values"]["frechet"] == pytest.approx(4, rel=1e-5)
    assert differing(*found) == []
    moved = found[1] | {"reference": found[1]["reference"] | {"model": "other.seed=1@128"}}
    assert differing(found[0], moved) == ["reference"]
    assert differing(found[0], found[0] | {"reference": {"dataset": "digits"}}) == ["reference"]
    assert read_json(Path(output))["better"] == {"frechet": "lower"}
