"""The averages that a run publishes: EMAs, each with its half-life, and those with power-function profiles."""

from __future__ import annotations

import math

from torch import nn

from onestep.config.run import Ema
from onestep.models import average_suffix
from onestep.power_average import exponent_of
from onestep.training.ema import MovingAverage


def averages_of(network: nn.Module, ema: Ema) -> dict[str, MovingAverage]:
    """Return the averages of a network by the suffix of their files; "" is the main one."""
    half_lives = {"": ema.half_life} | {average_suffix(each): float(each) for each in ema.others}
    averages = {
        suffix: MovingAverage(network, half_life=half_life, ramp_up=ema.ramp_up)
        for suffix, half_life in half_lives.items()
    }
    for std in ema.power:
        averages[average_suffix(std)] = average = MovingAverage(network, half_life=math.inf)
        average.power = exponent_of(std)
    return averages
