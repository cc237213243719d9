"""Metrics of several feature networks with held-out images: the plan, the verb, and what a config refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest

from onestep.archive import write_arrays
from onestep.cli import main
from onestep.config import ConfigError, parse_experiment
from onestep.fingerprint import Fingerprints
from onestep.plan import Plan, inputs, measure, report
from onestep.records import read_measurement
from tiny import tiny_config

BLOCK = ("digits_d2o@320", "one_step", "0-31")


def config_with(**metric):
    """Return the tiny config on a part of its digits, with a column over two feature networks."""
    config = tiny_config()
    config["datasets"] |= {
        "train": {"name": "part", "dataset": "digits", "images": 1400},
        "held_out": {"name": "part", "dataset": "digits", "images": 1400, "rest": True},
    }
    for run in config["runs"].values():
        run["dataset"] = "train"
    config["features"]["other"] = {"name": "classifier", "run": "digits_backbone"}
    block = {"name": "representations", "networks": ["digits", "other"], "held_out": "held_out"}
    config["metrics"]["fdr"] = {**block, **metric}
    config["tables"]["digits"] |= {"dataset": "train"}
    config["tables"]["digits"]["columns"]["fdr"] = "fdr.relative"
    return config


def test_the_plan_has_a_file_of_each_network_and_role():
    plan = Plan(experiment=parse_experiment(config_with()), fingerprints=Fingerprints())
    assert {role: [*map(str, paths)] for role, paths in measure.metric_files(plan, *BLOCK, "fdr").items()} == {
        "generated": [f"results/features/digits_d2o@320/one_step/0-31.{name}.npz" for name in ("digits", "other")],
        "real": ["results/features/train.digits.npz", "results/features/train.other.npz"],
        "held_out": ["results/features/held_out.digits.npz", "results/features/held_out.other.npz"],
    }
    assert plan.features_by_block["digits_d2o@320/one_step/0-31"] == {"digits", "other"}
    assert str(inputs.source_of(plan, plan.experiment.datasets["held_out"])) == "results/data/digits.zip"
    assert "digits" in inputs.needed_inputs(plan)
    assert json.loads(plan.options("metrics", "fdr")) == {"name": "representations"}


REFUSED = {
    "an unknown network": ({"networks": ["digits", "absent"]}, "metrics.fdr.networks[1]", "absent"),
    "an unknown dataset": ({"held_out": "absent"}, "metrics.fdr.held_out", "absent"),
    "no network": ({"networks": []}, "metrics.fdr.networks", "1"),
    "one network by the key of others": ({"features": "digits"}, "metrics.fdr.features", "features"),
    "the dataset itself": ({"held_out": "train"}, "tables.digits.columns.fdr", "train"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_measured_is_refused_by_its_place(case):
    change, place, part = REFUSED[case]
    with pytest.raises(ConfigError) as caught:
        parse_experiment(config_with(**change))
    (line,) = [line for line in caught.value.problems if line.startswith(f"config: {place}: ")]
    assert part in line


@pytest.mark.parametrize(
    ("dataset", "place"),
    [({"images": 1400, "dataset": "train"}, "datasets.held_out.dataset"), ({"images": 1400}, "datasets.held_out")],
    ids=["a part of a part", "a part of nothing"],
)
def test_a_part_is_one_of_a_whole_dataset(dataset, place):
    config = config_with()
    config["datasets"]["held_out"] = {"name": "part", **dataset}
    with pytest.raises(ConfigError) as caught:
        parse_experiment(config)
    assert [line for line in caught.value.problems if line.startswith(f"config: {place}")]


def test_images_in_the_dataset_of_a_row_are_not_held_out():
    config = config_with()
    config["tables"]["digits"]["dataset"] = "digits"
    for run in config["runs"].values():
        run["dataset"] = "digits"
    with pytest.raises(ConfigError) as caught:
        parse_experiment(config)
    assert any(line.startswith("config: tables.digits.columns.fdr: ") for line in caught.value.problems)


def _features(path, subject, *, network, seed, mean=0.0, **changes):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = np.random.default_rng(seed).standard_normal((60, 3)).astype(np.float32) + np.float32(mean)
    about = {
        "images": 60,
        "pixels_sha256": f"{seed:064d}",
        "weights_sha256": network.ljust(64, "0"),
        "subject": subject,
    }
    write_arrays(path, {"features": rows}, about=about | {"features": network} | changes)
    return path


def _files(folder, **changes):
    subject = dict(zip(("model", "sampler", "seeds"), BLOCK, strict=True))
    found = {"generated": [], "real": [], "held_out": []}
    for network in ("a", "b"):
        own = folder / "features" / BLOCK[0] / BLOCK[1] / f"{BLOCK[2]}.{network}.npz"
        extra = changes if network == "b" else {}
        found["generated"].append(_features(own, subject, network=network, seed=1, mean=1.0, **extra))
        for role, seed, dataset in (("real", 2, "train"), ("held_out", 3, "apart")):
            path = folder / "features" / f"{dataset}.{network}.npz"
            found[role].append(_features(path, {"dataset": dataset}, network=network, seed=seed))
    return found


def _words(files):
    return [
        word for role, paths in files.items() for path in paths for word in (f"--{role.replace('_', '-')}", str(path))
    ]


def test_the_verb_measures_alone_and_beside_others_with_equal_numbers(tmp_path):
    files = _files(tmp_path / "results")
    output = tmp_path / "results" / "metrics" / BLOCK[0] / BLOCK[1] / f"{BLOCK[2]}.fdr.json"
    metric = {"name": "representations"}
    assert (
        main(["measure", "--metric", json.dumps(metric), "--name", "fdr", *_words(files), "--output", str(output)]) == 0
    )
    alone = read_measurement(output)
    assert alone["values"]["relative"] > 10 and alone["features"] == "a, b"
    assert alone["reference"]["dataset"] == "train" and alone["reference"]["held_out"]["dataset"] == "apart"
    assert alone["feature_weights_sha256"] == {"a": "a".ljust(64, "0"), "b": "b".ljust(64, "0")}
    output.unlink()
    listed = {role: [*map(str, paths)] for role, paths in files.items()}
    single = {"generated": listed["generated"][0], "real": listed["real"][0]}
    each = {"fdr": {"metric": metric, **listed}, "fd": {"metric": {"name": "frechet"}, **single}}
    prefix = str(output).removesuffix(".fdr.json")
    assert main(["measure", "--each", json.dumps(each), "--output", prefix]) == 0
    assert read_measurement(output) == alone
    fd = read_measurement(output.with_name(f"{BLOCK[2]}.fd.json"))
    assert fd["values"]["frechet"] == alone["values"]["generated_a"]


@pytest.mark.parametrize("case", ["other images", "too few files", "twice", "several for one network"])
def test_files_that_do_not_belong_together_are_refused(tmp_path, case, capsys):
    changes = {"other images": {"pixels_sha256": "f" * 64}, "twice": {"features": "a"}}.get(case, {})
    files, metric = _files(tmp_path / "results", **changes), {"name": "representations"}
    if case == "too few files":
        files["real"] = files["real"][:1]
    if case == "several for one network":
        metric = {"name": "frechet"}
    output = tmp_path / "x.json"
    words = ["measure", "--metric", json.dumps(metric), "--name", "fdr", *_words(files), "--output", str(output)]
    assert main(words) != 0
    assert len(capsys.readouterr().err.strip().splitlines()) == 1 and not output.exists()


def _rows(config):
    experiment = parse_experiment(config)
    return {row["label"]: row.get("trained_on") for row in report.table_rows(experiment, "digits")}


def test_a_row_names_the_columns_of_features_that_it_was_trained_on():
    # `other` is the network of the discriminators' backbone.
    assert _rows(config_with()) == {"EDM": None, "D2O": ["fdr"], "D2O-F": ["fdr"]}
    assert _rows(config_with(networks=["digits"])) == {"EDM": None, "D2O": None, "D2O-F": None}
    config = config_with(networks=["digits"])
    config["features"]["digits"]["run"] = "digits_backbone"
    assert _rows(config)["D2O-F"] == ["fd", "is", "precision", "recall", "fdr"]


def test_a_run_that_starts_from_another_saw_its_networks():
    config = config_with()
    config["runs"]["later"] = {
        **config["runs"]["digits_edm"],
        "init": {"from": "digits_d2o"},
    }
    config["tables"]["digits"]["rows"].append({"run": "later", "sampler": "heun"})
    assert _rows(config)["later"] == ["fdr"]
