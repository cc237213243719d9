"""Values that a config becomes: defaults, types, documents."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator
from types import MappingProxyType
from typing import Any

import pytest
import yaml
from changed_demo import D2O, DEMO, TAKEN_AWAY, demo_with, problems
from test_ratio_runs import ratio_run

from onestep import components
from onestep.config import ConfigError, experiment_document, parse_experiment, read_experiment, run_document
from onestep.fingerprint import training_components


def test_the_demo_is_read():
    experiment = read_experiment(DEMO)
    assert list(experiment.runs) == ["digits_backbone", "digits_metric", "digits_edm", "digits_d2o", "digits_d2o_f"]
    plain, frozen = experiment.runs["digits_d2o"], experiment.runs["digits_d2o_f"]
    assert frozen == dataclasses.replace(plain, freeze=("conv", "proj"))
    assert experiment.teachers["digits"].run == "digits_edm"
    assert experiment.metrics["pr"].features == "digits"
    assert experiment.datasets["digits"].options == {"resolution": 16}
    assert experiment.inputs["digits"].package == "scikit-learn"
    assert experiment.tables["digits"].columns["fd"] == "fd.frechet"


def test_a_published_number_stands_alone_or_with_its_source_and_reads_back_the_same():
    row = {"label": "SiD", "published": {"fd": 1.923, "is": {"value": 9.98, "source": "A Paper"}}, "images": "~400 M"}
    experiment = parse_experiment(demo_with({"tables.digits.rows.3": row}))
    published = experiment.tables["digits"].rows[3].published
    assert [(each.value, each.source) for each in published.values()] == [(1.923, None), (9.98, "A Paper")]
    assert not experiment.tables["digits"].rows[3].is_measured
    assert parse_experiment(experiment_document(experiment)) == experiment


def test_rows_of_a_table_without_a_dataset_name_their_own():
    rows = [
        {"run": "digits_d2o", "sampler": "one_step", "dataset": "digits"},
        {"label": "SiD", "published": {"fd": 1.9}, "dataset": "letters"},
    ]
    changes = {
        "datasets.letters": {"name": "digits", "input": "digits", "resolution": 16},
        "tables.digits.dataset": TAKEN_AWAY,
        "tables.digits.rows": rows,
    }
    table = parse_experiment(demo_with(changes)).tables["digits"]
    assert [table.dataset_of(row) for row in table.rows] == ["digits", "letters"]


def test_values_cannot_be_changed():
    experiment = read_experiment(DEMO)
    run = experiment.runs["digits_edm"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        run.seed = 1  # type: ignore[misc]
    for mapping in (experiment.runs, run.network.options, run.optimizers, experiment.tables["digits"].columns):
        assert isinstance(mapping, MappingProxyType)
    assert isinstance(run.network.options["channel_mult"], tuple)


def test_anchors_merge_keys_and_numbers_are_read_as_yaml_means_them(tmp_path):
    text = DEMO.read_text()
    assert "<<: *d2o" in text
    path = tmp_path / "config.yaml"
    path.write_text(text.replace("digits_d2o_f: {<<: *d2o, ", "digits_d2o_f: {<<: *d2o, seed: 7, images: 5_000_000, "))
    runs = read_experiment(path).runs
    assert (runs["digits_d2o_f"].seed, runs["digits_d2o"].seed) == (7, 0)
    assert runs["digits_d2o_f"].images == 5_000_000
    assert runs["digits_d2o_f"].objective.options["r1_gamma"] == 1.0e-4
    assert runs["digits_d2o_f"].objective == runs["digits_d2o"].objective


def test_a_whole_number_is_a_number():
    run = parse_experiment(demo_with({f"{D2O}.objective.sigma": 80, f"{D2O}.ema.half_life": 5})).runs["digits_d2o"]
    assert (run.objective.options["sigma"], run.ema.half_life) == (80.0, 5.0)
    assert isinstance(run.objective.options["sigma"], float)


def test_options_left_out_take_the_defaults_of_the_signature():
    block = {"name": "song_unet", "preconditioning": "edm", "model_channels": 16}
    network = parse_experiment(demo_with({"runs.digits_edm.network": block})).runs["digits_edm"].network
    assert network.options["model_channels"] == 16
    assert network.options["channel_mult_emb"] == 4
    assert not {"img_resolution", "img_channels", "label_dim", "name", "preconditioning"} & network.options.keys()


def test_inputs_brought_by_hand_and_pickled_teachers_are_read():
    changes = {
        "inputs.edm": {"file": "downloads/edm.pkl"},
        "teachers.published": {"pickle": "edm"},
        "tables.digits.rows.3": {"teacher": "published", "sampler": "heun", "label": "EDM", "published": {"fd": 2}},
    }
    experiment = parse_experiment(demo_with(changes))
    assert experiment.inputs["edm"].file == "downloads/edm.pkl"
    assert experiment.teachers["published"].pickle == "edm"
    assert experiment.tables["digits"].rows[3].published["fd"].value == 2.0


@pytest.mark.parametrize(
    ("images", "every", "expected"),
    [
        (40_000, 10_000, (10_000, 20_000, 30_000, 40_000)),
        (45_000, 10_000, (10_000, 20_000, 30_000, 40_000, 45_000)),
        (30_000, 30_000, (30_000,)),
        (30_000, 40_000, (30_000,)),
    ],
)
def test_snapshots_are_named_by_counts_of_images_and_the_last_is_the_end(
    images: int, every: int, expected: tuple[int, ...]
):
    changes = {f"{D2O}.images": images, f"{D2O}.snapshot_every": every}
    assert parse_experiment(demo_with(changes)).runs["digits_d2o"].snapshots == expected


def test_the_run_document_is_the_run_with_every_default_and_is_plain_json():
    experiment = read_experiment(DEMO)
    document = run_document(experiment, "digits_d2o_f")
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    written = yaml.safe_load(DEMO.read_text())["runs"]["digits_d2o_f"]
    assert document.pop("run") == "digits_d2o_f"
    assert document.pop("snapshots") == list(experiment.runs["digits_d2o_f"].snapshots)
    assert document == written  # the demo states every option of this run
    network = run_document(experiment, "digits_edm")["network"]
    assert network["label_dropout"] == 0.0
    assert network["preconditioning"] == "edm"
    assert "teacher" not in run_document(experiment, "digits_edm")


def test_a_resolved_config_resolves_to_itself():
    experiment = read_experiment(DEMO)
    document = experiment_document(experiment)
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert parse_experiment(document) == experiment
    assert "churn_max" not in document["samplers"]["heun"]  # infinite: JSON has no word for it, the class has


def test_the_document_of_a_run_says_which_of_its_backbones_are_timms():
    changes = {
        "backbones.vgg": {"timm": "vgg16_bn.tv_in1k", "input": "digits"},
        f"{D2O}.discriminator.backbones": ["digits", "vgg"],
    }
    experiment = parse_experiment(demo_with(changes))
    assert run_document(experiment, "digits_d2o")["timm"] == {"vgg": "vgg16_bn.tv_in1k"}
    assert "timm" not in run_document(experiment, "digits_edm")


def test_the_document_of_a_run_that_is_none_names_the_choices():
    with pytest.raises(ValueError, match="'d2o'.*digits_backbone, digits_metric, digits_edm"):
        run_document(read_experiment(DEMO), "d2o")


@pytest.mark.parametrize(
    ("family", "place", "with_source"),
    [
        ("data", ("datasets", "digits"), {"input": "digits"}),
        ("features", ("features", "digits"), {"run": "digits_metric"}),
        ("networks", ("runs", "digits_edm", "network"), {"preconditioning": "edm"}),
        ("classifiers", ("runs", "digits_metric", "classifier"), {}),
        ("objectives", ("runs", "digits_d2o", "objective"), {}),
        ("discriminators", ("runs", "digits_d2o", "discriminator"), {"backbones": ["digits"]}),
        ("ratios", ("runs", "digits_d2o", "networks", "ratio"), {}),
        ("sampling", ("samplers", "heun"), {}),
        ("metrics", ("metrics", "fd"), {"features": "digits"}),
    ],
)
def test_every_choice_of_every_family_has_a_signature_that_configs_can_be_checked_against(
    family: str, place: tuple[str, ...], with_source: dict[str, Any]
):
    changed = ratio_run if family == "ratios" else demo_with
    for choice in components.choices(family):
        block: Any = {"name": choice, **with_source, "no_such_option": 1}
        document = changed({".".join(place): block})
        lines = problems(document)
        assert [line for line in lines if line.startswith(f"config.yaml: {'.'.join(place)}.no_such_option: ")]


def places_of(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield place
    steps = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for step in steps:
        yield from places_of(value[step], (*place, step))


def test_whatever_stands_at_a_place_is_read_or_refused_line_by_line():
    values = itertools.cycle([None, "x", [], {"name": ["a"]}, -1, True, "9-1", {}, 1e400, "1e-4", [[]]])
    refused = 0
    for place in list(places_of(demo_with({})))[1::2]:
        document = demo_with({})
        holder = document
        for step in place[:-1]:
            holder = holder[step]
        holder[place[-1]] = next(values)
        try:
            parse_experiment(document, source="config.yaml")
        except ConfigError as error:
            refused += 1
            assert error.problems
            assert all(line.startswith("config.yaml: ") and line.isprintable() for line in error.problems)
    assert refused > 100


DIFFAUGMENT = {"name": "diffaugment", "color": True, "translation": True, "cutout": False}
AUGMENT = {"name": "stylegan2_ada", "probability": 0.12, "operations": {"xflip": 1, "hue": 0.5}}


def test_an_augmentation_stands_in_the_run_document_and_counts_as_its_code():
    experiment = parse_experiment(demo_with({f"{D2O}.objective.augment": AUGMENT}))
    document = run_document(experiment, "digits_d2o")
    assert document["objective"]["augment"] == AUGMENT
    assert json.loads(json.dumps(document)) == document
    assert ("augmentations", "stylegan2_ada") in training_components(document)
    plain = run_document(parse_experiment(demo_with({})), "digits_d2o")
    assert "augment" not in plain["objective"]
    assert not any(family == "augmentations" for family, _ in training_components(plain))


@pytest.mark.parametrize(
    "augment",
    [
        DIFFAUGMENT,
        AUGMENT | {"probability": 0.0, "target": 0.6, "interval": 4, "ramp_images": 500_000},
        AUGMENT | {"target": None},
    ],
)
def test_every_augmentation_of_images_that_a_discriminator_sees_is_read(augment: dict[str, Any]):
    experiment = parse_experiment(demo_with({f"{D2O}.objective.augment": augment}))
    given = run_document(experiment, "digits_d2o")["objective"]["augment"]
    assert given == augment


def test_a_target_needs_a_discriminator():
    (problem,) = problems(demo_with({"runs.digits_edm.objective.augment": AUGMENT | {"target": 0.6}}))
    assert problem.startswith("config.yaml: runs.digits_edm.objective: augment") and "target" in problem


def test_a_wrong_augmentation_is_refused_at_its_objective():
    (problem,) = problems(demo_with({f"{D2O}.objective.augment": AUGMENT | {"operations": {"xflp": 1}}}))
    assert problem.startswith(f"config.yaml: {D2O}.objective: augment: ") and "'xflp'" in problem and "xflip" in problem
    (problem,) = problems(demo_with({f"{D2O}.objective.augment": DIFFAUGMENT | {"cutout": "no"}}))
    assert problem.startswith(f"config.yaml: {D2O}.objective: augment: ") and "cutout" in problem and "'no'" in problem
