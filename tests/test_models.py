"""Names of models: each holds what it depends on and reads back."""

from __future__ import annotations

import pytest

from onestep.models import Choice, Model

BY = Choice(metric="fd_2", value="frechet", sampler="one_step", seeds="0-1999")


@pytest.mark.parametrize(
    ("model", "name", "weights"),
    [
        (Model(name="edm"), "edm", "teachers/edm.safetensors"),
        (Model(name="d2o", images=300), "d2o@300", "runs/d2o/snapshots/300.safetensors"),
        (Model(name="d2o", images=300, ema=50), "d2o@300-ema50", "runs/d2o/snapshots/300-ema50.safetensors"),
        (
            Model(name="d2o_f", choice=BY),
            "d2o_f@best-fd_2.frechet-one_step-0-1999",
            "selections/d2o_f@best-fd_2.frechet-one_step-0-1999.safetensors",
        ),
        (
            Model(name="d2o_f", choice=BY, ema=50),
            "d2o_f@best-fd_2.frechet-one_step-0-1999-ema50",
            "selections/d2o_f@best-fd_2.frechet-one_step-0-1999-ema50.safetensors",
        ),
    ],
)
def test_a_name_says_all_and_reads_back(model, name, weights):
    assert str(model) == name
    assert Model.parse(name) == model
    assert model.weights == weights


@pytest.mark.parametrize("text", ["", "D2O", "d2o@", "d2o@best", "d2o@best-fd-one_step-0-9", "d2o-ema5", "d2o@1/2"])
def test_what_names_no_model_is_refused(text):
    with pytest.raises(ValueError, match="names no model"):
        Model.parse(text)
