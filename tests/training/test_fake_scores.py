"""Objective variational_score with a ratio network beside its fake score: restored states, and several processes."""

from __future__ import annotations

import torch
import yaml
from test_discriminators import ALONE, trained_steps
from test_ranks import assert_two_train_as_one

from onestep.checkpoints.training_state import read_training_state
from onestep.config.run import run_of
from onestep.training.run import assemble
from tiny import density_ratio_run


def _document(bench):
    """Return the document of a run of f-distill: three trained networks, and averages that follow the ratios."""
    document = yaml.safe_load(bench.document("digits_d2o", batch=8).read_text())
    ratio = {"divergence": "forward_kl", "noise": "dmd2", "normalise": 0.5}
    run = density_ratio_run(document, ratio={"name": "ratio_unet", "weights": "teacher"}, **ratio)
    run["optimizers"]["fake"] = run["optimizers"]["generator"]
    return run | {
        "objective": {"name": "variational_score", "loss": "dmd", "ratio": run["objective"], "grid": [0.02, 0.98]}
    }


def test_a_restored_state_trains_on_bitwise(bench, tmp_path):
    document = _document(bench)
    straight = trained_steps(bench, document, tmp_path / "straight", first=0, last=4)
    trained_steps(bench, document, tmp_path / "stopped", first=0, last=2)
    state = read_training_state(tmp_path / "stopped")
    trained = {"generator", "fake", "ratio"}
    assert {name.split(".")[1] for name in state.tensors if name.startswith("player.")} == trained
    assert state.values["controls"]["ratio_averages"]["value"][0] != 1.0
    resumed = trained_steps(bench, document, tmp_path / "stopped", first=2, last=4)
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(value, resumed[key]) for key, value in straight.items())
    ends = [read_training_state(tmp_path / each).values["controls"] for each in ("straight", "stopped")]
    assert ends[0] == ends[1] != state.values["controls"]


def test_the_fake_score_begins_as_the_teacher_and_is_trained_without_dropout(bench):
    document = _document(bench)
    training = assemble(run_of(document), files=bench.files(document), ranks=ALONE)
    fake, teacher = (training.networks[role] for role in ("fake", "teacher"))
    weights = teacher.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in fake.state_dict().items())
    assert all(each.requires_grad for each in fake.parameters())
    assert not any(each.requires_grad for each in teacher.parameters())
    assert {part.dropout for part in fake.modules() if hasattr(part, "dropout")} <= {0}


def test_two_processes_train_as_one_does(bench, tmp_path):
    made = {"run": _document(bench), "steps": 4, "batch_norm": "held"}
    assert_two_train_as_one(bench, made, tmp_path)
