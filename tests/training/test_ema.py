"""The moving average against the reference's factors, and its promises."""

import math

import pytest
import torch
from torch import nn

from onestep.training.ema import MovingAverage, ema_decay


@pytest.mark.golden
def test_factors_equal_the_reference(golden):
    rows = golden.json("ema.json")["rows"]
    assert rows
    for row in rows:
        half_life, ramp_up = row["halflife_kimg"] * 1000, row["rampup_ratio"] or 0.0
        if row["ema_beta"]:  # a constant factor, which is here a half-life without limit
            half_life, ramp_up = -row["batch_size"] / math.log2(row["ema_beta"]), 0.0
        found = ema_decay(
            row["cur_nimg_before_increment"], batch=row["batch_size"], half_life=half_life, ramp_up=ramp_up
        )
        assert found == pytest.approx(row["r"], rel=1e-12, abs=1e-300), row


def test_first_step_copies_and_later_steps_average():
    network = nn.Linear(3, 2)
    average = MovingAverage(network, half_life=1000.0, ramp_up=0.05)
    with torch.no_grad():
        network.weight += 1
    average.update(images_seen=0, batch=10)
    assert torch.equal(average.published()["weight"], network.weight)

    before = network.weight.detach().clone()
    with torch.no_grad():
        network.weight += 1
    average.update(images_seen=1_000_000, batch=1000)
    torch.testing.assert_close(average.published()["weight"], before + 0.5)


def test_frozen_parameters_and_buffers_are_published_as_they_are():
    network = nn.BatchNorm1d(3)
    network.bias.requires_grad_(False)
    average = MovingAverage(network, half_life=1000.0, ramp_up=0.0)
    with torch.no_grad():
        network.running_mean += 5
        network.bias += 7
    published = average.published()
    assert set(average.state()) == {"weight"}
    assert torch.equal(published["running_mean"], network.running_mean)
    assert torch.equal(published["bias"], network.bias)


def test_restoring_another_networks_average_is_refused():
    average = MovingAverage(nn.Linear(3, 2), half_life=1000.0, ramp_up=0.0)
    with pytest.raises(ValueError, match="'other'"):
        average.restore({"weight": torch.zeros(2, 3), "bias": torch.zeros(2), "other": torch.zeros(1)})


def test_a_shorter_half_life_follows_closer_and_each_average_keeps_its_own():
    network = nn.Linear(3, 2)
    short, long = (MovingAverage(network, half_life=half_life, ramp_up=0.0) for half_life in (10.0, 1000.0))
    before = network.weight.detach().clone()
    with torch.no_grad():
        network.weight += 1
    for average in (short, long):
        average.update(images_seen=50_000, batch=10)
    torch.testing.assert_close(short.published()["weight"], before + 0.5)
    torch.testing.assert_close(long.published()["weight"], before + 1 - 0.5**0.01)
