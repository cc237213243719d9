"""EDM's denoising score matching."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from onestep.config import parse_experiment, run_document
from onestep.objectives import Batch
from onestep.objectives.edm import Edm
from tiny import tiny_config

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


def test_laws_of_noise_levels():
    rows = _batch(range(20_000), images=torch.zeros(1))
    assert Edm(noise="lognormal").noise_levels(_batch(range(9))).equal(Edm().noise_levels(_batch(range(9))))
    assert (Edm(noise="fixed", sigma=80.0).noise_levels(rows) == 80).all()
    logs = Edm(noise="log_uniform", sigma_min=0.2, sigma_max=2.0).noise_levels(rows).log()
    low, high = math.log(0.2), math.log(2.0)
    assert low - 1e-6 <= logs.min() < low + 0.01 and high - 0.01 < logs.max() <= high + 1e-6
    share = ((logs - low) / (high - low)).sort().values
    assert (share - torch.linspace(0, 1, len(share))).abs().max() < 0.02  # Kolmogorov and Smirnov: uniform


def test_an_image_has_the_same_noise_with_all_laws():
    given = []
    network = Shrink()
    network.register_forward_pre_hook(lambda module, inputs: given.append(inputs))
    laws = [{}, {"noise": "fixed", "sigma": 3.0}, {"noise": "log_uniform", "sigma_min": 0.1, "sigma_max": 9.0}]
    for law in laws:
        Edm(**law).generator_loss({"generator": network}, _batch(range(3)))
    noises = [(noisy - _batch(range(3)).images) / sigma[:, None, None, None] for noisy, sigma, _ in given]
    for noise in noises[1:]:
        torch.testing.assert_close(noise, noises[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("place", "options"),
    [
        ("sigma", {"noise": "fixed"}),
        ("sigma", {"sigma": 1.0}),
        ("sigma_min", {"noise": "fixed", "sigma": 1.0, "sigma_min": 0.1}),
        ("sigma_max", {"noise": "log_uniform", "sigma_min": 0.1}),
        ("sigma_min", {"noise": "log_uniform", "sigma_min": 2.0, "sigma_max": 2.0}),
        ("sigma_max", {"noise": "lognormal", "sigma_max": 2.0}),
    ],
)
def test_levels_that_do_not_fit_the_law_are_refused(place, options):
    with pytest.raises(ValueError, match=f"^{place}: "):
        Edm(**options)


def test_run_yaml_names_the_law_of_noise_only_where_it_is_chosen():
    config = tiny_config()
    before = run_document(parse_experiment(config), "digits_edm")
    assert before["objective"] == {"name": "edm", **_PUBLISHED}
    config["runs"]["digits_edm"]["objective"] |= {"noise": "fixed", "sigma": 80.0}
    after = run_document(parse_experiment(config), "digits_edm")
    assert after == {**before, "objective": {**before["objective"], "noise": "fixed", "sigma": 80.0}}
