"""Families of runs (`vary:`), deep `base:`, and rows of tables that name families."""

from __future__ import annotations

import dataclasses
import re

import pytest
import yaml
from changed_demo import D2O, DEMO, TAKEN_AWAY, demo_with, problems

from onestep.config import experiment_document, parse_experiment, read_experiment, run_document
from onestep.config.constraints import RUN_NAME
from onestep.config.run import Run, run_of


def runs_of(changes):
    return parse_experiment(demo_with(changes)).runs


def names_of(changes):
    return [name for name in runs_of(changes) if "." in name]


def test_each_value_makes_a_run():
    plain = read_experiment(DEMO).runs["digits_d2o_f"]
    runs = runs_of({"runs.digits_d2o_f.vary": {"seed": [0, 1, 2]}})
    members = {name: run for name, run in runs.items() if name.startswith("digits_d2o_f")}
    assert list(members) == ["digits_d2o_f.seed=0", "digits_d2o_f.seed=1", "digits_d2o_f.seed=2"]
    for seed, run in enumerate(members.values()):
        assert run == dataclasses.replace(plain, seed=seed)
    assert list(runs)[:4] == ["digits_backbone", "digits_metric", "digits_edm", "digits_d2o"]


def test_several_keys_make_the_product_and_values_are_spelled_for_file_names():
    vary = {"optimizers.generator.lr": [1.0e-4, 3.0e-5], "freeze": [[], ["conv", "proj"]], "precision.tf32": [True]}
    runs = runs_of({f"{D2O}.vary": vary, "runs.digits_d2o_f": TAKEN_AWAY, "tables.digits.rows.2": D2O_ROW})
    members = {name: run for name, run in runs.items() if "." in name}
    assert list(members) == [
        "digits_d2o.lr=0.0001.freeze=none.tf32=true",
        "digits_d2o.lr=0.0001.freeze=conv+proj.tf32=true",
        "digits_d2o.lr=3e-05.freeze=none.tf32=true",
        "digits_d2o.lr=3e-05.freeze=conv+proj.tf32=true",
    ]
    last = members["digits_d2o.lr=3e-05.freeze=conv+proj.tf32=true"]
    assert last.optimizers["generator"].lr == 3.0e-5 and last.optimizers["discriminator"].lr == 2.0e-4
    assert last.freeze == ("conv", "proj") and last.precision.tf32
    assert all(re.fullmatch(RUN_NAME, name) for name in runs)
    assert re.compile(RUN_NAME).groups == 0


D2O_ROW = {"run": "digits_d2o", "sampler": "one_step"}


def test_keys_with_one_last_part_are_spelled_out():
    vary = {"optimizers.generator.lr": [1.0e-4], "optimizers.discriminator.lr": [2.0e-4]}
    (name,) = names_of({"runs.digits_d2o_f.vary": vary})
    assert name == "digits_d2o_f.optimizers.generator.lr=0.0001.optimizers.discriminator.lr=0.0002"


def test_a_key_that_has_a_default_may_vary():
    runs = runs_of({"runs.digits_d2o_f.compile": TAKEN_AWAY, "runs.digits_d2o_f.vary": {"compile.networks": [True]}})
    assert runs["digits_d2o_f.networks=true"].compile.networks


def test_a_member_is_a_run_like_any_other_and_resolves_to_itself():
    experiment = parse_experiment(demo_with({"runs.digits_d2o_f.vary": {"seed": [0, 1]}}))
    document = run_document(experiment, "digits_d2o_f.seed=1")
    assert (document["run"], document["seed"]) == ("digits_d2o_f.seed=1", 1)
    assert not {"vary", "base"} & document.keys()
    assert run_of(yaml.safe_load(yaml.safe_dump(document))).run == experiment.runs["digits_d2o_f.seed=1"]
    assert parse_experiment(experiment_document(experiment)) == experiment


def test_a_row_of_a_family_has_its_runs_and_a_pattern_makes_a_row_per_run():
    changes = {"runs.digits_d2o_f.vary": {"seed": [0, 1]}, "runs.digits_edm.vary": {"seed": [0]}}
    changes["teachers.digits.run"] = "digits_edm.seed=0"
    rows = [
        {"run": "digits_d2o_f", "sampler": "one_step", "label": "D2O-F"},
        {"run": "digits_d2o_f.*", "sampler": "one_step", "label": "D2O-F"},
        {"run": "digits_d2o", "sampler": "one_step"},
    ]
    table = parse_experiment(demo_with(changes) | {"tables": table_of(rows)}).tables["digits"]
    names = ("digits_d2o_f.seed=0", "digits_d2o_f.seed=1")
    assert [(row.run, row.label, row.members) for row in table.rows] == [
        ("digits_d2o_f", "D2O-F", names),
        (names[0], "D2O-F, seed=0", names[:1]),
        (names[1], "D2O-F, seed=1", names[1:]),
        ("digits_d2o", None, ("digits_d2o",)),
    ]


def table_of(rows):
    return {"digits": demo_with({})["tables"]["digits"] | {"rows": rows}}


STUDY = {
    "name": "images_seen",
    "runs": ["digits_d2o_f", "digits_d2o", "digits_edm*"],
    "sampler": "one_step",
    "metric": "fd",
    "value": "frechet",
    "seeds": ["0-99"],
    "control": "digits",
}


def test_a_study_of_a_family_has_its_runs():
    changes = {"runs.digits_d2o_f.vary": {"seed": [0, 1]}, "studies": {"gain": STUDY}}
    experiment = parse_experiment(demo_with(changes))
    runs = ("digits_d2o_f.seed=0", "digits_d2o_f.seed=1", "digits_d2o", "digits_edm")
    assert experiment.studies["gain"].options["runs"] == runs
    assert parse_experiment(experiment_document(experiment)) == experiment


@pytest.mark.parametrize(
    ("key", "value"),
    [("runs", ["digits_gan"]), ("sampler", "euler"), ("metric", "fid"), ("control", "edm"), ("control", "digits_x@5")],
)
def test_names_of_a_study_are_those_of_the_config(key, value):
    lines = problems(demo_with({"studies": {"gain": STUDY | {key: value}}}))
    wrong = value[0] if isinstance(value, list) else value.partition("@")[0]
    assert lines and all(line.startswith("config.yaml: studies.gain: ") and repr(wrong) in line for line in lines)


def test_launch_exceptions_name_a_family_or_a_member():
    changes = {
        "runs.digits_d2o_f.vary": {"seed": [0, 1]},
        "launch.runs": {"digits_d2o_f": {"hours": 2.0}, "digits_d2o_f.seed=1": {"hours": 3.0}},
    }
    launch = parse_experiment(demo_with(changes)).launch
    hours = {name: launch.of(name).hours for name in ("digits_d2o", "digits_d2o_f.seed=0", "digits_d2o_f.seed=1")}
    assert hours == {"digits_d2o": 1.0, "digits_d2o_f.seed=0": 2.0, "digits_d2o_f.seed=1": 3.0}


def test_a_base_is_merged_deeply():
    block = {
        "base": "digits_d2o",
        "freeze": ["conv"],
        "objective": {"r1_gamma": 0.5},
        "optimizers": {"generator": {"lr": 1.0e-3}},
        "precision": None,
    }
    runs = runs_of({"runs.digits_d2o_f": block})
    plain, changed = runs["digits_d2o"], runs["digits_d2o_f"]
    assert changed.objective.options == {**plain.objective.options, "r1_gamma": 0.5}
    assert changed.optimizers["discriminator"] == plain.optimizers["discriminator"]
    assert changed.optimizers["generator"] == dataclasses.replace(plain.optimizers["generator"], lr=1.0e-3)
    assert (changed.freeze, changed.precision) == (("conv",), Run.precision)
    assert (changed.batch, changed.discriminator) == (plain.batch, plain.discriminator)


def test_a_block_of_another_class_replaces_the_base_s():
    edm = {"name": "edm", "p_mean": -1.2, "p_std": 1.2, "sigma_data": 0.5}
    block = {"base": "digits_d2o", "discriminator": None, "objective": edm, "optimizers": {"discriminator": None}}
    run = runs_of({"runs.digits_d2o_f": block})["digits_d2o_f"]
    assert (run.objective.name, dict(run.objective.options)) == ("edm", {k: v for k, v in edm.items() if k != "name"})
    assert run.discriminator is None and list(run.optimizers) == ["generator"]


def test_bases_are_chained_and_may_come_later_and_bring_their_family():
    changes = {
        "runs.digits_d2o_f": {"base": "later", "seed": 5},
        "runs.later": {"base": "digits_d2o", "freeze": ["conv"], "batch": 32},
        "runs.family": {"base": "digits_d2o", "vary": {"seed": [0, 1]}},
        "runs.frozen": {"base": "family", "freeze": ["proj"]},
        "runs.one": {"base": "family", "vary": None},
    }
    runs = runs_of(changes)
    assert (runs["digits_d2o_f"].freeze, runs["digits_d2o_f"].batch, runs["digits_d2o_f"].seed) == (("conv",), 32, 5)
    assert runs["frozen.seed=1"].freeze == ("proj",) and runs["frozen.seed=1"].seed == 1
    assert runs["one"].seed == 0 and "one.seed=0" not in runs


def test_anchors_are_independent_of_bases(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(DEMO.read_text().replace("{<<: *d2o, freeze", "{<<: *d2o, base: digits_d2o, seed: 4, freeze"))
    runs = read_experiment(path).runs
    assert runs["digits_d2o_f"] == dataclasses.replace(runs["digits_d2o"], seed=4, freeze=("conv", "proj"))


WRONG = {
    "unknown base": ({"runs.digits_d2o_f.base": "digits_d20"}, "runs.digits_d2o_f.base", "digits_d2o"),
    "a base that is no name": ({"runs.digits_d2o_f.base": 3}, "runs.digits_d2o_f.base", "3"),
    "its own base": ({"runs.digits_d2o_f.base": "digits_d2o_f"}, "runs.digits_d2o_f.base", "digits_d2o_f ->"),
    "nothing that varies": ({"runs.digits_d2o_f.vary": {}}, "runs.digits_d2o_f.vary", "seed"),
    "no values": ({"runs.digits_d2o_f.vary": {"seed": []}}, "runs.digits_d2o_f.vary.seed", "empty"),
    "one value without a list": ({"runs.digits_d2o_f.vary": {"seed": 3}}, "runs.digits_d2o_f.vary.seed", "3"),
    "a value twice": ({"runs.digits_d2o_f.vary": {"seed": [1, 1]}}, "runs.digits_d2o_f.vary", "seed=1"),
    "a value that names no file": (
        {"runs.digits_d2o_f.vary": {"teacher": ["a/b"]}},
        "runs.digits_d2o_f.vary.teacher[0]",
        "a/b",
    ),
    "a mapping as a value": (
        {"runs.digits_d2o_f.vary": {"objective": [{"name": "edm"}]}},
        "runs.digits_d2o_f.vary.objective[0]",
        "mapping",
    ),
    "a key below a number": ({"runs.digits_d2o_f.vary": {"seed.x": [1]}}, "runs.digits_d2o_f.vary.seed.x", "seed"),
    "an unknown key": ({"runs.digits_d2o_f.vary": {"sed": [1]}}, "runs.digits_d2o_f.sed=1.sed", "seed"),
    "a value of the wrong type": (
        {"runs.digits_d2o_f.vary": {"seed": ["a"]}},
        "runs.digits_d2o_f.seed=a.seed",
        "whole number",
    ),
    "a pattern of no run": (
        {"tables.digits.rows.3": {"run": "digits_gan.*", "sampler": "heun"}},
        "tables.digits.rows[3].run",
        "digits_gan.*",
    ),
    "a family as a teacher": (
        {"runs.digits_edm.vary": {"seed": [0]}, "tables.digits.rows.0": D2O_ROW},
        "teachers.digits.run",
        "digits_edm.seed=0",
    ),
}


@pytest.mark.parametrize(("changes", "place", "part"), WRONG.values(), ids=WRONG.keys())
def test_what_is_wrong_with_families_is_one_line_at_its_place(changes, place, part):
    (line,) = problems(demo_with(changes))
    assert line.startswith(f"config.yaml: {place}: ") and part in line.removeprefix(f"config.yaml: {place}: ")


def test_a_circle_of_bases_is_named_at_each_run():
    lines = problems(demo_with({"runs.digits_d2o_f.base": "digits_d2o", "runs.digits_d2o.base": "digits_d2o_f"}))
    assert [line.split(": ")[1] for line in lines] == ["runs.digits_d2o_f.base", "runs.digits_d2o.base"] or [
        line.split(": ")[1] for line in lines
    ] == ["runs.digits_d2o.base", "runs.digits_d2o_f.base"]
    assert all("digits_d2o -> digits_d2o_f" in line or "digits_d2o_f -> digits_d2o" in line for line in lines)
