"""Teachers that are folders of diffusers: their law, and what is refused before any job."""

from __future__ import annotations

from typing import Any

import pytest
from changed_demo import D2O, TAKEN_AWAY, demo_with, problems, problems_at
from yaml import safe_dump

from dit_files import write_dit_folder
from onestep.bench.random_run import shape_of
from onestep.config import parse_experiment, read_experiment, run_document
from onestep.config.laws import teacher_law
from onestep.plan import Plan
from onestep.plan.inputs import teacher_options
from tiny import REPOSITORY
from unet2d_folders import write_folder

D2O_F = "runs.digits_d2o_f"
LAWS = {f"{run}.preconditioning": TAKEN_AWAY for run in (D2O, D2O_F)}
SMALL = {"name": "unet2d", "block_out_channels": [8, 16], "norm_num_groups": 4}
BLOCKS = {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2}


def with_folder(path: str, **changes: Any) -> dict[str, Any]:
    """Return the demo with that folder as the teacher, and the law of runs left to the config."""
    return demo_with({"inputs.unet": {"file": path}, "teachers.digits": {"weights": "unet"}, **LAWS, **changes})


@pytest.fixture
def folder(tmp_path):
    write_folder(tmp_path / "unet")
    return str(tmp_path / "unet")


def test_a_run_has_the_law_of_its_folder(folder):
    document = run_document(parse_experiment(with_folder(folder)), "digits_d2o")
    assert document["preconditioning"] == "ddpm" and document["dropout"] == 0.0
    # One that is not here yet is a folder by its slash.
    assert parse_experiment(with_folder("absent/")).runs["digits_d2o"].preconditioning == "ddpm"


def test_a_run_has_the_law_of_its_teacher_s_network():
    network = {**SMALL, **BLOCKS, "preconditioning": "flow"}
    document = demo_with({"runs.digits_edm.network": network, **LAWS})
    found = parse_experiment(document)
    assert found.runs["digits_d2o"].preconditioning == found.runs["digits_d2o_f"].preconditioning == "flow"
    assert found.runs["digits_edm"].network.preconditioning == "flow"


def test_the_recipe():
    experiment = read_experiment(REPOSITORY / "config.yaml")
    document = run_document(experiment, "cifar10_ddpm_d2o_f")
    assert document["preconditioning"] == "ddpm" and document["freeze"] == ["conv", "proj"]
    rows = experiment.tables["cifar10_ddpm"].rows
    assert [experiment.samplers[row.sampler].options.get("steps") for row in rows[:2]] == [1000, 50]
    assert shape_of(experiment, "cifar10_ddpm_d2o", given={})[:2] == (32, 3)


REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "D2O's law": ({f"{D2O}.preconditioning": "d2o"}, f"{D2O}.preconditioning", "ddpm"),
    "velocities": ({f"{D2O}.preconditioning": "flow"}, f"{D2O}.preconditioning", "ddpm"),
    "a law of a folder that none has": (
        {"teachers.digits": {"weights": "unet", "preconditioning": "edm"}},
        "teachers.digits.preconditioning",
        "ddpm",
    ),
    "other images": ({"datasets.digits.resolution": 8}, f"{D2O}.teacher", "16"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_suit_a_folder_is_refused(folder, name):
    changes, place, named = REFUSED[name]
    lines = problems_at(with_folder(folder, **changes), place)
    assert lines and all(named in line for line in lines)


def test_a_pickle_has_no_law_of_others():
    changes = {"inputs.edm": {"file": "edm.pkl"}, "teachers.digits": {"weights": "edm", "preconditioning": "flow"}}
    assert any(line.startswith("config.yaml: teachers.digits.preconditioning") for line in problems(demo_with(changes)))


def _with_state_dict(law, **source):
    teacher = {"weights": "dit"} | ({} if law is None else {"preconditioning": law})
    return demo_with({"inputs.dit": source, "teachers.digits": teacher, **LAWS})


@pytest.mark.parametrize("source", [{"file": "dit.pt"}, {"url": "https://example.org/a.pt?download=1"}])
def test_a_state_dict_has_its_law_stated(source):
    for law in ("ddpm", "flow"):
        document = run_document(parse_experiment(_with_state_dict(law, **source)), "digits_d2o")
        assert document["preconditioning"] == law
    for law in (None, "edm", "d2o"):
        lines = problems_at(_with_state_dict(law, **source), "teachers.digits.preconditioning")
        assert lines and all("ddpm" in line and "flow" in line for line in lines)


def test_a_published_state_dict_has_the_law_of_the_registry(tmp_path):
    found = teacher_law(_with_state_dict(None, published="sit-xl-2-256x256"), "digits")
    assert (found, teacher_law(_with_state_dict(None, published="dit-xl-2-256x256"), "digits")) == ("flow", "ddpm")
    document = _with_state_dict("ddpm", published="sit-xl-2-256x256")
    assert problems_at(document, "teachers.digits.preconditioning")
    # Latents are not the digits' pixels.
    assert problems_at(_with_state_dict(None, published="sit-xl-2-256x256"), f"{D2O}.teacher")


def test_the_shape_of_a_dit_s_folder_is_compared(tmp_path):
    write_dit_folder(tmp_path / "dit", sample_size=8)
    lines = problems_at(with_folder(str(tmp_path / "dit")), f"{D2O}.teacher")
    assert lines and all("8" in line for line in lines)


def test_a_snapshot_s_law_may_be_stated():
    teacher = {"weights": "mine", "preconditioning": "ddpm"}
    document = demo_with({"inputs.mine": {"file": "mine.safetensors"}, "teachers.digits": teacher, **LAWS})
    assert parse_experiment(document).runs["digits_d2o"].preconditioning == "ddpm"


def test_a_network_of_another_law_is_not_fine_tuned_in_d2o_s():
    changes = {"runs.digits_edm.network": {**SMALL, **BLOCKS, "preconditioning": "ddpm"}}
    assert problems_at(demo_with(changes), f"{D2O}.preconditioning")


def test_classes_that_a_run_does_not_have_are_refused_by_the_plan(tmp_path, monkeypatch):
    write_folder(tmp_path / "unet", num_class_embeds=10)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(safe_dump(with_folder("unet/"), sort_keys=False))
    with pytest.raises(ValueError, match="runs.digits_d2o.teacher"):
        Plan.read("config.yaml")


def _with_teacher(source, **teacher):
    return demo_with({"inputs.dit": source, "teachers.digits": {"weights": "dit", **teacher}, **LAWS})


def _planned(document, folder):
    (folder / "config.yaml").write_text(safe_dump(document, sort_keys=False))
    return Plan.read("config.yaml")


@pytest.mark.parametrize("source", [{"file": "dit/"}, {"file": "dit.safetensors"}, {"url": "https://example.org/a.pt"}])
def test_the_network_for_no_class_is_a_teacher_of_runs_without_classes(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    write_dit_folder(tmp_path / "dit")
    law = "ddpm" if source == {"file": "dit/"} else "flow"
    if law == "ddpm":
        with pytest.raises(ValueError, match="runs.digits_d2o.teacher"):
            _planned(_with_teacher(source, preconditioning=law), tmp_path)
    plan = _planned(_with_teacher(source, preconditioning=law, without_classes=True), tmp_path)
    assert teacher_options(plan, "digits") == f"--preconditioning {law} --without-classes"
    # The other way round: it has no classes for a run that has them.
    document = _with_teacher(source, preconditioning=law, without_classes=True)
    document["runs"]["digits_d2o"]["conditional"] = True
    if law == "ddpm":
        with pytest.raises(ValueError, match="runs.digits_d2o.teacher"):
            _planned(document, tmp_path)


@pytest.mark.parametrize("source", [{"file": "edm.pkl"}, {"published": "edm-cifar10-32x32-uncond-vp"}])
def test_the_network_for_no_class_of_a_pickle_is_refused(source):
    assert problems_at(_with_teacher(source, without_classes=True), "teachers.digits.without_classes")


def test_the_network_for_no_class_of_a_run_is_refused():
    document = demo_with({"teachers.digits.without_classes": True})
    assert problems_at(document, "teachers.digits.without_classes")


def test_the_recipe_without_classes():
    experiment = read_experiment(REPOSITORY / "studies/latents_full.yaml")
    document = run_document(experiment, "coco256_sit_d2o_f")
    assert document["preconditioning"] == "flow" and not document["conditional"] and document["freeze"] == ["F2"]
    assert experiment.runs["coco256_sit_d2o_f"].discriminator.class_embeddings is None
