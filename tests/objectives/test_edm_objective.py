"""EDM's denoising score matching."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from onestep.objectives import Batch
from onestep.objectives.edm import Edm

_PUBLISHED = {"p_mean": -1.2, "p_std": 1.2, "sigma_data": 0.5}


class Streams:
    """One generator a row."""

    def __init__(self, seeds):
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def normal(self, *shape):
        return torch.stack([torch.randn(shape, generator=generator) for generator in self.generators])


class Shrink(nn.Module):
    """The best denoiser of independent normal pixels of standard deviation 0.5."""

    def forward(self, noisy, sigma, labels):
        return noisy * (0.25 / (0.25 + sigma**2))[:, None, None, None]


def _batch(rows, *, labels=None, images=None):
    images = (
        0.5 * torch.randn(len(rows), 2, 4, 4, generator=torch.Generator().manual_seed(9)) if images is None else images
    )
    return Batch(images=images, condition=labels, random=Streams(rows), images_seen=0)


def test_loss_is_the_weighted_square_summed_over_pixels():
    rows = range(6)
    batch, streams = _batch(rows), Streams(rows)
    sigma = torch.exp(-1.2 + 1.2 * streams.normal())
    noise = streams.normal(2, 4, 4)
    wanted = 0.0
    for image, level, draw in zip(batch.images, sigma, noise, strict=True):
        square = ((image + level * draw) * 0.25 / (0.25 + level**2) - image).square().sum()
        wanted += (level**2 + 0.25) / (level * 0.5) ** 2 * square / len(rows)
    loss = Edm(**_PUBLISHED).generator_loss({"generator": Shrink()}, batch)
    torch.testing.assert_close(loss.value, wanted)
    torch.testing.assert_close(loss.observed["denoising_error"], wanted / 32)


def test_best_linear_denoiser_has_unit_loss_a_pixel_at_every_level():
    batch = _batch(range(4000), images=0.5 * torch.randn(4000, 2, 4, 4, generator=torch.Generator().manual_seed(4)))
    loss = Edm(**_PUBLISHED).generator_loss({"generator": Shrink()}, batch)
    assert loss.observed["denoising_error"].item() == pytest.approx(1.0, abs=0.02)


def test_noise_levels_are_log_normal():
    logs = Edm(p_mean=0.3, p_std=0.7, sigma_data=0.5).noise_levels(_batch(range(20_000), images=torch.zeros(1))).log()
    assert logs.mean().item() == pytest.approx(0.3, abs=5 * 0.7 / math.sqrt(20_000))
    assert logs.std().item() == pytest.approx(0.7, rel=0.03)


def test_two_halves_of_a_batch_average_to_the_whole():
    objective, images, networks = Edm(**_PUBLISHED), torch.randn(4, 1, 4, 4), {"generator": Shrink()}
    whole = objective.generator_loss(networks, _batch(range(4), images=images)).value
    first = objective.generator_loss(networks, _batch(range(2), images=images[:2])).value
    second = objective.generator_loss(networks, _batch(range(2, 4), images=images[2:])).value
    torch.testing.assert_close((first + second) / 2, whole)


def test_denoiser_is_given_the_labels():
    given = []
    network = Shrink()
    network.register_forward_pre_hook(lambda module, inputs: given.append(inputs[2]))
    labels = torch.eye(3)
    (phase,) = Edm(**_PUBLISHED).phases()
    phase.loss({phase.trains: network}, _batch(range(3), labels=labels))
    assert given[0] is labels
