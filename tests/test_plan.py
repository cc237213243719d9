"""Inputs and parameters of rules: runs, snapshots, averages, selections and tables."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from onestep.config import ConfigError, parse_experiment
from onestep.fingerprint import Fingerprints
from onestep.models import MODEL, RUN
from onestep.plan import Plan, inputs, measure, report, sample, study, train
from tiny import selecting_config, tiny_config

CHOSEN = "digits_d2o@best-fd.frechet-one_step-0-31-ema4"


def plan_of(config):
    return Plan(experiment=parse_experiment(config), fingerprints=Fingerprints())


def rule_of(plan, run):
    return next(rule for rule in train.train_rules(plan) if rule.name == run)


def paths(found):
    return list(map(str, found))


def options(plan, table):
    return json.loads(report.table_options(plan, table))


def models(plan, table):
    return [row["model"] for row in options(plan, table)["rows"]]


def test_a_run_is_planned_from_its_own_inputs_alone():
    plan = plan_of(tiny_config())
    assert rule_of(plan, "digits_edm").weights == []
    rule = rule_of(plan, "digits_d2o")
    teacher, backbone = "results/teachers/digits.safetensors", "results/runs/digits_backbone/snapshots/320.safetensors"
    assert paths(rule.weights) == [teacher, backbone]
    assert rule.options == f"--teacher {teacher} --backbone digits={backbone}"
    assert paths(rule.snapshots) == [f"results/runs/digits_d2o/snapshots/{n}.safetensors" for n in (160, 320)]
    assert rule.code == ""


def test_training_that_follows_its_code_has_it_as_a_parameter():
    config = tiny_config() | {"rerun": {"training_on_code_change": True}}
    plan = plan_of(config)
    rule = rule_of(plan, "digits_d2o")
    assert rule.code == train.training_code(plan, "digits_d2o") and rule.options.endswith(" --code-in-spec")


def test_a_run_has_timm_backbones_and_published_class_embeddings():
    config = tiny_config()
    config["inputs"] |= {"eye": {"file": "/data/eye.safetensors"}, "table": {"file": "/data/table.pkl"}}
    config["backbones"]["eye"] = {"timm": "resnet18.tv_in1k", "input": "eye"}
    run = config["runs"]["digits_d2o"]
    config["class_embeddings"] = {
        "published": {"input": "table"},
        "own": {"backbone": "eye", "dataset": "digits", "resolution": 64},
    }
    run["discriminator"] |= {"backbones": ["eye"], "class_embeddings": "published"}
    run["conditional"] = config["runs"]["digits_edm"]["conditional"] = True
    rule = rule_of(plan_of(config), "digits_d2o")
    eye, table = "results/inputs/eye/eye.safetensors", "results/inputs/table/table.pkl"
    assert paths(rule.weights) == ["results/teachers/digits.safetensors", eye, table]
    assert f"--backbone eye={eye} --class-embeddings {table}" in rule.options

    run["discriminator"]["class_embeddings"] = "own"
    plan = plan_of(config)
    assert paths(rule_of(plan, "digits_d2o").weights)[-1] == "results/class_embeddings/own.safetensors"
    files = inputs.embedding_files(plan, "own")
    assert (str(files["backbone"]), str(files["data"])) == (eye, "results/data/digits.zip")
    assert inputs.embedding_options(plan, "own") == "--resolution 64 --timm resnet18.tv_in1k"


ODD_NAMES = [
    "my weights.safetensors",
    "a $(touch PWNED).safetensors",
    "b;touch PWNED;.safetensors",
    "c`touch PWNED`.safetensors",
    "d'e\"f.safetensors",
    "g\\h*?[i].safetensors",
    "{j}.safetensors",
    "~k&l|m>n#o!.safetensors",
]


def odd_plan(name, *, storage="keep"):
    """Return the plan of a config in which a file of this name is a backbone and a feature extractor."""
    config = tiny_config() | {"storage": {"images": storage, "features": storage}}
    config["inputs"]["eye"] = {"file": f"/data/{name}"}
    config["backbones"]["eye"] = {"timm": "resnet18.tv_in1k", "input": "eye"}
    config["features"]["digits"] = {"name": "inception", "input": "eye"}
    config["class_embeddings"] = {"own": {"backbone": "eye", "dataset": "digits", "resolution": 64}}
    config["runs"]["digits_d2o"]["discriminator"] |= {"backbones": ["eye"]}
    return plan_of(config)


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_name_is_one_word_of_a_command_whatever_is_in_it(name):
    plan, file = odd_plan(name, storage="none"), f"results/inputs/eye/{name}"
    words = shlex.split(rule_of(plan, "digits_d2o").options)
    assert words == ["--teacher", "results/teachers/digits.safetensors", "--backbone", f"eye={file}"]
    assert shlex.split(inputs.embedding_options(plan, "own")) == [
        "--resolution",
        "64",
        "--timm",
        "resnet18.tv_in1k",
    ]
    (rule,) = sample.observe_rules(plan)
    assert shlex.split(rule.weight_options) == [f"digits={file}"]
    wildcards = {"model": "digits_d2o@320", "metric": "fd"}
    options = measure.metric_file_options(plan, wildcards, {"real": file, "real_pixels": "a.zip"})
    assert shlex.split(options) == ["--real", file, "--real-pixels", "a.zip"]


def test_an_ordinary_name_is_as_it_is():
    plan = odd_plan("vit-b_16.v2+x@1,y=z%.safetensors")
    assert rule_of(plan, "digits_d2o").options.endswith(
        " --backbone eye=results/inputs/eye/vit-b_16.v2+x@1,y=z%.safetensors"
    )


def test_metric_and_discriminator_have_different_networks():
    plan = plan_of(tiny_config())
    discriminator = [path for path in rule_of(plan, "digits_d2o").weights if "runs" in path.parts]
    assert len(discriminator) == 1 and inputs.source_of(plan, plan.experiment.features["digits"]) not in discriminator


def test_a_tables_options_hold_nothing_of_training():
    found = options(plan_of(tiny_config()), "digits")
    assert set(found) == {"name", "layout", "metrics", "drawn", "rows"}
    assert [row["nfe"] for row in found["rows"]] == [5, 1, 1, 1]


def test_other_training_code_has_another_fingerprint():
    codes = json.loads(report.table_training_code(plan_of(tiny_config()), "digits"))
    assert codes["digits_d2o"] == codes["digits_d2o_f"] != codes["digits_edm"]
    closure = Fingerprints().closure(["onestep.training.run"])
    assert "onestep.training.loop" in closure and not any(".report" in name or ".launch" in name for name in closure)


def test_every_average_is_a_declared_output_of_its_run():
    folder = "results/runs/digits_d2o/snapshots"
    found = paths(rule_of(plan_of(selecting_config()), "digits_d2o").snapshots)
    assert found == [f"{folder}/{name}.safetensors" for name in ("160", "160-ema4", "320", "320-ema4")]


def test_a_selection_needs_every_snapshot_of_its_average_and_its_number():
    plan = plan_of(selecting_config())
    assert models(plan, "chosen") == [CHOSEN, None]
    assert paths(measure.candidates(plan, CHOSEN)) == [
        f"results/runs/digits_d2o/snapshots/{images}-ema4.safetensors" for images in (160, 320)
    ]
    assert paths(measure.candidate_metrics(plan, CHOSEN)) == [
        f"results/metrics/digits_d2o@{images}-ema4/one_step/0-31.fd.json" for images in (160, 320)
    ]
    assert json.loads(measure.selection_options(plan, CHOSEN))["direction"] == "lower"
    assert str(plan.weights(CHOSEN)) == f"results/selections/{CHOSEN}.safetensors"
    assert paths(report.table_files(plan, "chosen")["choices"]) == [f"results/selections/{CHOSEN}.json"]
    assert report.table_files(plan, "digits")["choices"] == []


def test_tables_of_different_policies_share_no_file():
    config = selecting_config()
    config["tables"]["other"] = {**config["tables"]["chosen"], "select_seeds": "64-95"}
    config["tables"]["last"] = {**config["tables"]["chosen"], "select": "last"}
    plan = plan_of(config)
    assert models(plan, "other")[0] == "digits_d2o@best-fd.frechet-one_step-64-95-ema4"
    assert models(plan, "last")[0] == "digits_d2o@320-ema4"


def test_the_main_average_by_its_half_life_is_the_main_average():
    config = selecting_config()
    config["tables"]["chosen"]["rows"][0]["ema"] = 5000
    config["tables"]["chosen"]["rows"].append({"run": "digits_edm", "sampler": "heun"})
    rows = options(plan_of(config), "chosen")["rows"]
    assert rows[0]["model"] == "digits_d2o@best-fd.frechet-one_step-0-31"
    # A run with one snapshot has nothing to select from.
    assert (rows[2]["model"], rows[2]["images_seen"]) == ("digits_edm@320", 320)


def test_the_curve_of_another_average_is_measured_on_its_own_snapshots():
    config = selecting_config()
    config["tables"]["chosen"]["curves"] = {"column": "fd", "seeds": "0-31"}
    found = paths(report.page_inputs(plan_of(config)))
    assert "results/metrics/digits_d2o@160-ema4/one_step/0-31.fd.json" in found
    assert f"results/grids/{CHOSEN}/one_step/0-31.npz" in found
    assert not any("None" in path for path in found)


def test_a_block_that_is_not_stored_is_sampled_once_for_the_extractors_of_all_its_metrics():
    config = selecting_config() | {"storage": {"images": "none", "features": "none"}}
    config["features"]["second"] = {"name": "classifier", "run": "digits_backbone"}
    config["metrics"]["fd_second"] = {"name": "frechet", "features": "second"}
    config["tables"]["chosen"]["columns"]["fd_second"] = "fd_second.frechet"
    plan = plan_of(config)
    rules = {rule.name: rule for rule in sample.observe_rules(plan)}
    assert set(rules) == {"observe_digits", "observe_digits_and_second"}
    both = rules["observe_digits_and_second"]
    assert re.fullmatch(both.blocks, f"{CHOSEN}/one_step/0-31")
    assert not re.fullmatch(rules["observe_digits"].blocks, f"{CHOSEN}/one_step/0-31")
    # A candidate needs the extractor of the number that selects, and no other.
    assert re.fullmatch(rules["observe_digits"].blocks, "digits_d2o@160-ema4/one_step/0-31")
    assert json.loads(both.options) == {"digits": {"name": "classifier"}, "second": {"name": "classifier"}}
    assert both.weight_options == " ".join(f"{n}={w}" for n, w in zip(both.features, both.weights, strict=True))
    wanted = [path for table in config["tables"] for path in report.table_files(plan, table)["metrics"]]
    blocks = {str(path.relative_to("results/metrics").with_name(path.name.split(".")[0])) for path in wanted}
    assert blocks and all(sum(bool(re.fullmatch(rule.blocks, each)) for rule in rules.values()) == 1 for each in blocks)
    assert len(sample.observation_code(plan, "digits_d2o@160-ema4/one_step/0-31")) == 16
    assert not sample.stores_images(plan)


@pytest.mark.parametrize(
    ("launch", "resources"),
    [
        ({"gpus": "gres"}, ("gpu:1", None, None)),
        ({"gpus": "gres", "gpu_type": "a100"}, ("gpu:a100:1", None, None)),
        ({"gpus": "gpus"}, (None, 1, None)),
        ({"gpus": "gpus", "gpu_type": "a100"}, (None, 1, "a100")),
        ({"gpus": "none", "gpu_type": "a100"}, (None, None, None)),
    ],
)
def test_a_job_requests_its_gpu_in_the_form_of_the_site(launch, resources):
    config = selecting_config()
    config["launch"] |= launch
    found = plan_of(config).gpu
    assert (found["gres"], found["gpu"], found["gpu_model"]) == resources


def test_an_absent_input_stops_an_offline_workflow(monkeypatch, tmp_path):
    config = tiny_config()
    config["inputs"]["edm"] = {"url": "https://example.org/edm.pkl"}
    monkeypatch.chdir(tmp_path)
    plan = plan_of(config)
    assert inputs.stop_if_absent_offline(plan, "edm") == []
    monkeypatch.setenv("ONESTEP_OFFLINE", "1")
    with pytest.raises(ValueError) as stopped:
        inputs.stop_if_absent_offline(plan, "edm")
    assert "inputs/edm/edm.pkl" in str(stopped.value)
    Path("inputs/edm").mkdir(parents=True)
    Path("inputs/edm/edm.pkl").touch()
    assert inputs.stop_if_absent_offline(plan, "edm") == []


@pytest.mark.parametrize("name", ["here/digits.csv.gz", "folder/"])
def test_an_absent_file_of_this_machine_is_an_error_of_the_plan(monkeypatch, tmp_path, name):
    config = tiny_config()
    config["inputs"]["digits"] = {"file": str(tmp_path / name)}
    monkeypatch.chdir(tmp_path)
    plan = plan_of(config)
    with pytest.raises(ConfigError) as stopped:
        inputs.check_local_files(plan)
    assert len(stopped.value.problems) == 1
    assert "inputs.digits" in str(stopped.value) and str(tmp_path / name) in str(stopped.value)
    # A copy of an earlier run is enough.
    placed = inputs.input(plan, "digits")
    placed.parent.mkdir(parents=True)
    placed.touch()
    inputs.check_local_files(plan)


def test_a_row_of_a_family_has_the_models_of_its_members_which_are_all_measured():
    config = tiny_config()
    config["runs"]["digits_d2o_f"]["vary"] = {"seed": [0, 1]}
    plan = plan_of(config)
    runs = ("digits_d2o_f.seed=0", "digits_d2o_f.seed=1")
    (row,) = (row for row in options(plan, "digits")["rows"] if row["run"] == "digits_d2o_f")
    assert (row["models"], row["model"], row["images_seen"]) == ([f"{run}@320" for run in runs], None, 320)
    measured = paths(report.table_files(plan, "digits")["metrics"])
    for run in runs:
        assert f"results/metrics/{run}@320/one_step/0-31.fd.json" in measured
        assert f"results/runs/{run}/summary.json" in paths(report.table_files(plan, "digits")["summaries"])
        assert paths(rule_of(plan, run).snapshots)[-1] == f"results/runs/{run}/snapshots/320.safetensors"
        assert re.fullmatch(RUN, run) and re.fullmatch(MODEL, f"{run}@320")
        assert run in json.loads(report.table_training_code(plan, "digits"))


STUDY = {"name": "images_seen", "runs": ["digits_d2o"], "sampler": "one_step", "metric": "fd", "value": "frechet"}


def test_a_study_needs_the_numbers_that_it_observes():
    config = tiny_config() | {"studies": {"seen": {**STUDY, "seeds": ["64-95"], "control": "digits_edm@320"}}}
    config["storage"] = {"images": "none", "features": "none"}
    plan = plan_of(config)
    found = study.study_files(plan, "seen")
    files = {str(path) for group in found.values() for path in group}
    wanted = {f"results/metrics/digits_d2o@{images}/one_step/64-95.fd.json" for images in (160, 320)}
    assert files == wanted | {"results/metrics/digits_edm@320/one_step/64-95.fd.json"}
    assert json.loads(study.study_file_options(plan, "seen")) == {key: paths(group) for key, group in found.items()}
    assert {"results/studies/seen.json", "results/studies/seen.svg"} <= set(paths(report.page_inputs(plan)))
    (rule,) = sample.observe_rules(plan)
    assert re.fullmatch(rule.blocks, "digits_d2o@160/one_step/64-95")
    assert len(plan.code("study", "studies", "seen")) == 16


def test_a_study_on_request_and_its_runs_are_no_part_of_the_page():
    config = tiny_config()
    config["runs"]["aside"] = {**config["runs"]["digits_d2o"], "seed": 9}
    study_of = {**STUDY, "runs": ["digits_d2o", "aside"], "seeds": ["64-95"], "on_request": True}
    plan = plan_of(config | {"studies": {"seen": study_of}})
    assert not [path for path in paths(report.page_inputs(plan)) if "seen" in path or "/aside/" in path]
    assert "results/runs/digits_d2o/summary.json" in paths(report.page_inputs(plan))
    found = {str(path) for group in study.study_files(plan, "seen").values() for path in group}
    assert "results/metrics/aside@320/one_step/64-95.fd.json" in found
    assert "on_request" not in json.loads(plan.options("studies", "seen"))
    plan = plan_of(config | {"studies": {"seen": {**study_of, "on_request": False}}})
    assert "results/runs/aside/summary.json" in paths(report.page_inputs(plan))
    asked = {
        word: plan_of(config | {"studies": {"seen": study_of}}).asked_by(["-n", word])
        for word in ("x", "y/seen.md", "aside")
    }
    assert [sorted(set(each.experiment.runs) & {"aside", "digits_d2o"}) for each in asked.values()] == [
        ["digits_d2o"],
        *[["aside", "digits_d2o"]] * 2,
    ]
    assert asked["x"].document == asked["aside"].document and not asked["x"].experiment.studies
    with pytest.raises(ConfigError, match="studies.seen.on_request"):
        plan_of(config | {"studies": {"seen": {**study_of, "on_request": "yes"}}})


def test_a_study_of_few_images_reads_records_and_features_of_each_snapshot():
    config = tiny_config()
    config["metrics"]["other"] = {"name": "frechet", "features": "other"}
    config["features"]["other"] = {"name": "classifier", "run": "digits_metric"}
    config["runs"]["digits_d2o"]["snapshots"] = config["runs"]["digits_d2o_f"]["snapshots"] = [64]
    few = {key: STUDY[key] for key in ("sampler", "metric", "value")} | {"name": "few_images", "seeds": ["64-95"]}
    few |= {"arms": {"all": "digits_d2o", "frozen": "digits_d2o_f"}, "pairs": [["all", "frozen"]], "at": 64}
    config["studies"] = {"few": {**few, "dataset": "digits", "features": "other"}}
    plan = plan_of(config)
    found = {name: paths(group) for name, group in study.study_files(plan, "few").items()}
    blocks = [f"digits_d2o@{images}/one_step/64-95" for images in (64, 160, 320)]
    assert found["features.digits_d2o"] == [f"results/features/{each}.other.npz" for each in blocks]
    assert found["run.digits_d2o"] == ["results/runs/digits_d2o/run.yaml"]
    assert found["log.digits_d2o"] == ["results/runs/digits_d2o/log.jsonl"]
    assert found["at.digits_d2o_f"] == ["results/metrics/digits_d2o_f@64/one_step/64-95.fd.json"]
    assert (found["real"], found["images"]) == (["results/features/digits.other.npz"], ["results/data/digits.zip"])
    assert all(plan.features_by_block[each] == {"digits", "other"} for each in blocks)


OUTSIDE = """
from typing import ClassVar

class Brightness:
    inputs: ClassVar = ("pixels", "real_pixels")
    values: ClassVar = {"mean": "higher"}
    takes_statistics: ClassVar = False
    least_images = 1

    def __call__(self, *, pixels, real_pixels):
        return {"mean": float(pixels.mean())}
"""


def test_a_metric_of_pixels_needs_images_and_no_features(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("brightness.py").write_text(OUTSIDE)
    config = tiny_config() | {"storage": {"images": "none", "features": "none"}}
    config["metrics"]["bright"] = {"name": "brightness:Brightness"}
    config["tables"]["digits"]["columns"]["bright"] = "bright.mean"
    plan = plan_of(config)
    assert measure.metric_files(plan, "digits_d2o@320", "one_step", "0-31", "bright") == {
        "pixels": [Path("results/samples/digits_d2o@320/one_step/0-31.npz")],
        "real_pixels": [Path("results/data/digits.zip")],
    }
    # Images are stored until they are measured, although the config keeps none.
    assert sample.stores_images(plan)
    before = plan.code("measure", "metrics", "bright")
    Path("brightness.py").write_text(OUTSIDE.replace("mean())", "max())"))
    assert plan_of(config).code("measure", "metrics", "bright") != before


def test_the_longest_chain_of_runs_trains_first():
    config = tiny_config()
    config["runs"]["digits_metric"]["images"] = 512
    plan = plan_of(config)
    images = {name: run.images for name, run in plan.experiment.runs.items()}
    found = {rule.name: rule.priority for rule in train.train_rules(plan)}
    assert found["digits_edm"] == images["digits_edm"] + images["digits_d2o"] > images["digits_edm"]
    assert found["digits_backbone"] == images["digits_backbone"] + images["digits_d2o"]
    assert (found["digits_metric"], found["digits_d2o"]) == (512, images["digits_d2o"])
