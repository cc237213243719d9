"""`init` and `pairs` of a run, and snapshots at 0 images, in config.yaml, in run.yaml and in the plan."""

from __future__ import annotations

import copy

import pytest
import yaml
from changed_demo import TAKEN_AWAY, demo_with, problems

from onestep.config import experiment_document, parse_experiment, run_document
from onestep.config.identity import changes, spec_of
from onestep.config.run import run_of
from onestep.fingerprint import Fingerprints
from onestep.models import parse_model
from onestep.plan import Plan, inputs, sample, train
from onestep.results import Results, State

REGRESSION = {
    "dataset": "digits",
    "conditional": False,
    "teacher": "digits",
    "init": {"from": "none"},
    "objective": {"name": "paired_regression", "distance": {"name": "l2"}, "sigma": 2.5},
    "pairs": {"sampler": "heun", "seeds": ["10000-10999", "20000-20099"]},
    "optimizers": {"generator": {"lr": 1.0e-4}},
    "batch": 64,
    "images": 640,
}


def with_starts(**added):
    """Return the demo's config with a regression, D2O that starts from it, and changes of both."""
    tuned = {"base": "digits_d2o", "init": {"from": "mapping"}, "snapshots": [0, 5_000]}
    changed = {f"runs.{name}": copy.deepcopy(block) for name, block in {"mapping": REGRESSION, "tuned": tuned}.items()}
    return demo_with(changed | added)


def test_run_yaml_has_them_only_where_they_are_given_and_reads_back():
    experiment = parse_experiment(with_starts())
    assert parse_experiment(experiment_document(experiment)) == experiment
    plain, mapping, tuned = (run_document(experiment, name) for name in ("digits_d2o", "mapping", "tuned"))
    assert not {"init", "pairs"} & plain.keys()
    assert mapping["init"] == {"from": "none", "redraw": [], "shuffle": False}
    assert mapping["pairs"] == {"sampler": "heun", "seeds": ["10000-10999", "20000-20099"]}
    assert mapping["preconditioning"] == "edm"
    assert tuned["init"]["from"] == "mapping" and tuned["snapshots"][:3] == [0, 5_000, 10_000]
    for document in (mapping, tuned):
        assert run_of(yaml.safe_load(yaml.safe_dump(document))).run == experiment.runs[document["run"]]
    assert changes(plain, tuned) and spec_of(plain, digests={}, code=None) != spec_of(tuned, digests={}, code=None)


def test_the_plan_has_their_files_and_the_chain_of_runs():
    document = with_starts()
    document["teachers"]["mapped"] = {"run": "mapping"}
    document["runs"]["other"] = {"base": "tuned", "init": {"from": "mapped"}}
    plan = Plan(experiment=parse_experiment(document), fingerprints=Fingerprints())
    rules = {rule.name: rule for rule in train.train_rules(plan)}
    pairs = [f"results/samples/digits/heun/{seeds}.npz" for seeds in REGRESSION["pairs"]["seeds"]]
    assert [str(path) for path in rules["mapping"].weights] == ["results/teachers/digits.safetensors", *pairs]
    assert rules["mapping"].options.split()[2:] == ["--pairs", pairs[0], "--pairs", pairs[1]]
    assert rules["tuned"].options.endswith("--init results/runs/mapping/snapshots/640.safetensors")
    assert rules["other"].options.endswith("--init results/teachers/mapped.safetensors")
    assert rules["digits_edm"].priority == 150_000 + 640 + 40_000
    assert sample.stores_images(plan) and inputs.needed_inputs(plan) == ["digits"]


def test_images_are_kept_for_pairs_where_the_config_keeps_none():
    document = with_starts(**{"storage.images": "none"})
    assert sample.stores_images(Plan(experiment=parse_experiment(document), fingerprints=Fingerprints()))
    del document["runs"]["mapping"], document["runs"]["tuned"]
    assert not sample.stores_images(Plan(experiment=parse_experiment(document), fingerprints=Fingerprints()))


def test_a_run_that_has_not_begun_has_not_passed_its_start(tmp_path):
    from onestep.plan.progress import without_passed

    experiment = parse_experiment(with_starts())
    found = without_passed(experiment, results=Results(tmp_path / "results"), state=State(tmp_path / "state"))
    assert found.runs["tuned"].snapshots == experiment.runs["tuned"].snapshots
    assert str(parse_model("tuned@0")) == "tuned@0"


def test_a_family_gives_each_run_the_member_with_its_training_seed():
    seeds = {"vary": {"seed": [0, 1]}}
    document = with_starts()
    document["runs"]["mapping"] |= copy.deepcopy(seeds)
    document["runs"]["tuned"] |= seeds
    document["runs"]["vague"] = {"base": "digits_d2o", "init": {}, "vary": {"init.from": ["none", "teacher"]}}
    runs = parse_experiment(document).runs
    assert [runs[f"tuned.seed={seed}"].init.source for seed in (0, 1)] == ["mapping.seed=0", "mapping.seed=1"]
    assert runs["vague.from=none"].init.source == "none"
    document["runs"]["tuned"]["vary"]["seed"].append(5)
    (line,) = problems(document)
    assert line.startswith("config.yaml: runs.tuned.seed=5.init.from: ") and "mapping" in line


SMALL = {"name": "song_unet", "model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [8]}
OTHER_NETWORK = {"runs.mapping.teacher": TAKEN_AWAY, "runs.mapping.init": TAKEN_AWAY, "runs.mapping.network": SMALL}
OTHER_NETWORK |= {"runs.mapping.pairs.teacher": "digits"}
CONDITIONAL = {"conditional": True, "network": SMALL, "objective": {"name": "edm"}, "images": 640, "batch": 64}
REFUSED = {
    "runs.mapping.init.start": ({"runs.mapping.init.start": "none"}, "from"),
    "runs.mapping.init.from": ({"runs.mapping.init.from": "someone"}, "digits_d2o"),
    "runs.tuned.init.from": (
        OTHER_NETWORK | {"runs.mapping.init": TAKEN_AWAY, "runs.mapping.network": SMALL},
        "model.",
    ),
    "runs.mapping.init.redraw": ({"runs.mapping.init.redraw": ["model.*"]}, "fresh"),
    "runs.mapping.init.shuffle": ({"runs.mapping.init.shuffle": True}, "fresh"),
    "runs.tuned.init.redraw[1]": ({"runs.tuned.init.redraw": ["model.enc.*", "model.end.*"]}, "model.end.*"),
    "runs.digits_edm.init.from": ({"runs.digits_edm.init": {"from": "teacher"}}, "teacher"),
    "runs.digits_backbone.init": ({"runs.digits_backbone.init": {"from": "none"}}, "generator"),
    "runs": ({"runs.digits_edm.init": {"from": "mapping"}}, "->"),
    "runs.mapping": ({"runs.mapping.pairs": TAKEN_AWAY}, "`pairs`"),
    "runs.tuned.pairs": ({"runs.tuned.pairs": {"sampler": "heun", "seeds": ["0-9"]}}, "d2o"),
    "runs.mapping.pairs.sampler": ({"runs.mapping.pairs.sampler": "ddim"}, "heun"),
    "runs.mapping.pairs.teacher": ({"runs.mapping.pairs.teacher": "someone"}, "digits"),
    "runs.mapping.pairs.seeds[1]": ({"runs.mapping.pairs.seeds": ["0-99", "50-149"]}, "0-99"),
    "runs.mapping.pairs.seeds[0]": ({"runs.mapping.pairs.seeds": ["9-0"]}, "9-0"),
    "runs.tuned.snapshots": ({"runs.tuned.snapshots": [0, 10]}, "64"),
}


@pytest.mark.parametrize("place", REFUSED)
def test_what_cannot_be_is_refused_before_any_job(place):
    changed, part = REFUSED[place]
    lines = problems(with_starts(**changed))
    assert len(lines) == 1 and lines[0].startswith(f"config.yaml: {place}: ") and part in lines[0], lines


def test_a_sampler_with_churn_makes_no_pairs():
    (line,) = problems(with_starts(**{"samplers.heun.churn": 10.0}))
    assert line.startswith("config.yaml: runs.mapping.pairs.sampler: ") and "noise" in line


def test_a_teacher_of_other_images_makes_no_pairs():
    changed = {"runs.classes": {"dataset": "digits", "optimizers": {"generator": {"lr": 0.1}}, **CONDITIONAL}}
    changed |= {"teachers.by_class": {"run": "classes"}, "runs.mapping.pairs.teacher": "by_class"}
    (line,) = problems(with_starts(**changed))
    assert line.startswith("config.yaml: runs.mapping.pairs.teacher: ") and "conditional" in line


@pytest.mark.parametrize(("run", "sigma"), [("mapping", 2.5), ("tuned", 80.0)])
def test_images_are_not_measured_on_noise_that_the_generator_has_learnt(run, sigma):
    document = with_starts(**{"samplers.its_own": {"name": "one_step", "sigma": sigma}})
    document["tables"]["digits"]["rows"].append({"run": run, "sampler": "its_own", "label": run})
    parse_experiment(document)
    document["tables"]["digits"]["seeds"] = ["10500-12499"]
    (line,) = [each for each in problems(document) if "overlap" in each]
    assert line.startswith("config.yaml: tables.digits.rows[4]: ") and "10000-10999" in line


def test_what_only_runs_on_request_start_from_is_on_request_too():
    from onestep.plan import measured

    document = with_starts()
    arms = {"0": "digits_d2o", "1": "tuned", "random": "digits_d2o_f"}
    document["studies"] = {
        "levels": {
            **{"name": "freeze_levels", "arms": arms, "trained": "0", "frozen": "1", "at_random": "random"},
            **{"sampler": "one_step", "metric": "fd", "value": "frechet", "seeds": ["0-99"], "on_request": True},
        }
    }
    experiment = parse_experiment(document)
    kept = [name for name in experiment.runs if name not in ("mapping", "tuned")]
    assert measured.default_runs(experiment) == kept
    document["runs"]["other"] = {"base": "digits_d2o", "init": {"from": "mapping"}}
    expected = [*(name for name in experiment.runs if name != "tuned"), "other"]
    assert measured.default_runs(parse_experiment(document)) == expected
