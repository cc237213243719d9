"""Model names: each holds what the model depends on, reads back, and has one file."""

from __future__ import annotations

from pathlib import Path

import pytest

from onestep.models import Choice, Selected, Snapshot, Teacher, parse_model
from onestep.results import Results

BY = Choice(metric="fd_2", value="frechet", sampler="one_step", seeds="0-1999")


@pytest.mark.parametrize(
    ("model", "name", "weights"),
    [
        (Teacher(name="edm"), "edm", "teachers/edm.safetensors"),
        (Snapshot(name="d2o", images=300), "d2o@300", "runs/d2o/snapshots/300.safetensors"),
        (Snapshot(name="d2o", images=300, ema=50), "d2o@300-ema50", "runs/d2o/snapshots/300-ema50.safetensors"),
        (
            Snapshot(name="d2o.lr=1e-4,seed=-1", images=300, ema=50),
            "d2o.lr=1e-4,seed=-1@300-ema50",
            "runs/d2o.lr=1e-4,seed=-1/snapshots/300-ema50.safetensors",
        ),
        (
            Selected(name="d2o_f", choice=BY),
            "d2o_f@best-fd_2.frechet-one_step-0-1999",
            "selections/d2o_f@best-fd_2.frechet-one_step-0-1999.safetensors",
        ),
        (
            Selected(name="d2o_f", choice=BY, ema=50),
            "d2o_f@best-fd_2.frechet-one_step-0-1999-ema50",
            "selections/d2o_f@best-fd_2.frechet-one_step-0-1999-ema50.safetensors",
        ),
    ],
)
def test_a_name_holds_everything_and_reads_back(model, name, weights):
    assert str(model) == name
    assert parse_model(name) == model
    assert Results(Path("r")).weights(model) == Path("r") / weights


@pytest.mark.parametrize("text", ["", "D2O", "d2o@", "d2o@best", "d2o@best-fd-one_step-0-9", "d2o-ema5", "d2o@1/2"])
def test_other_text_is_refused(text):
    with pytest.raises(ValueError) as refused:
        parse_model(text)
    assert repr(text) in str(refused.value)
