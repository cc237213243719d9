"""Objective drifting: the recording of the reference, what its field does, what is refused."""

from __future__ import annotations

import pytest
import torch

from onestep.coupling import Start
from onestep.objectives.drifting import Drifting, drift
from recorded_studies import assert_close, constants, objectives_of, tensors, tolerance

_FILE = "mmd.npz"


@pytest.mark.golden
def test_loss_and_gradient_equal_the_recording(golden):
    recorded = objectives_of(golden)
    arrays, known = tensors(recorded.load(_FILE)), constants(recorded, _FILE)
    objective = Drifting(features={"net": 1.0}, temperatures=tuple(known["R"]))
    leaf = arrays["generated"].clone().requires_grad_()
    found = objective.loss({"net": leaf, "net:real": arrays["real"]}, {})
    (gradient,) = torch.autograd.grad(found.value, leaf)
    losses = tolerance(recorded, _FILE, r"losses rel ([0-9.e-]+)")
    assert float(found.value.detach()) == pytest.approx(float(arrays["drifting/loss"]), rel=losses)
    share = tolerance(recorded, _FILE, r"grads rel ([0-9.e-]+)")
    assert_close(gradient, arrays["drifting/grad"], share=share, what="grad")


def _rows(count, *, seed, shift=0.0, width=3):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def test_images_move_towards_the_real_ones():
    generated, real = _rows(40, seed=0), _rows(60, seed=1, shift=3.0)
    field, _, _ = drift(generated, real, temperatures=(0.2, 0.05))
    assert (field.mean(dim=0) > 0.3).all()
    for _ in range(200):
        field, unit, _ = drift(generated, real, temperatures=(0.2, 0.05))
        generated = generated + 0.05 * unit * field
    assert (generated.mean(dim=0) - real.mean(dim=0)).abs().max() < 0.5
    # Generated images repel each other, so that they do not meet in one point.
    assert 0.5 < float(generated.std() / real.std()) < 2.5


def test_the_force_vanishes_where_the_two_sets_are_one_distribution():
    sizes = [
        float(drift(_rows(count, seed=2), _rows(count, seed=3), temperatures=(0.5,))[2]) for count in (50, 200, 800)
    ]
    assert sizes[0] > 1.5 * sizes[1] > 2 * sizes[2]
    apart = float(drift(_rows(200, seed=2), _rows(200, seed=3, shift=2.0), temperatures=(0.5,))[2])
    assert apart > 3 * sizes[1]


def test_the_field_does_not_depend_on_the_unit_of_features():
    generated, real = _rows(20, seed=4), _rows(20, seed=5)
    one, unit, _ = drift(generated, real, temperatures=(0.2,))
    other, larger, _ = drift(100 * generated, 100 * real, temperatures=(0.2,))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert float(larger / unit) == pytest.approx(100, rel=1e-4)


def test_equal_images_have_finite_gradients():
    rows = torch.ones(4, 3, requires_grad=True)
    found = Drifting(features={"net": 1.0}).loss({"net": rows, "net:real": torch.ones(4, 3)}, {})
    assert torch.autograd.grad(found.value, rows)[0].isfinite().all()


def test_a_step_of_one_image_and_no_features_are_refused():
    with pytest.raises(ValueError, match="features"):
        Drifting(features={})
    with pytest.raises(ValueError, match="batch"):
        Drifting(features={"net": 1.0}).start(Start(images=10, batch=1, collect=None))
