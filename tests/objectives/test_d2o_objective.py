"""D2O's three losses: recordings of the reference, finite differences, and what they must not depend on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from onestep.objectives import Batch
from onestep.objectives.d2o import D2O

_RECORDED_LOSS = {"ns": "non_saturating", "hinge": "hinge"}


class Recorded:
    """Random streams that give recorded noise."""

    def __init__(self, noise):
        self.noise = noise

    def normal(self, *shape):
        assert self.noise.shape[1:] == shape
        return self.noise


class Affine(nn.Module):
    """A generator of two numbers."""

    def __init__(self, *, weight, bias, sigma):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.tensor(weight)), nn.Parameter(torch.tensor(bias))
        self.sigma = sigma

    def forward(self, noisy, sigma, labels):
        assert sigma.shape == noisy.shape[:1] and bool((sigma == self.sigma).all())
        return self.weight * noisy / self.sigma + self.bias


class Critics(nn.Module):
    """A discriminator of one matrix a critic."""

    def __init__(self, matrices):
        super().__init__()
        self.matrices = nn.Parameter(matrices)
        self.splits = (matrices.shape[-1],) * len(matrices)

    def forward(self, images, labels):
        return self.heads(self.frozen_features(images), labels)

    def frozen_features(self, images):
        return tuple((images.flatten(1).tanh(),) for _ in self.matrices)

    def heads(self, features, condition):
        return torch.cat([maps[0] @ matrix for maps, matrix in zip(features, self.matrices, strict=True)], dim=1)


def _objective(**changes):
    options = {"loss": "non_saturating", "sigma": 80.0, "rows_per_rank": 4.0, "r1_gamma": 0.1, "r1_every": 16}
    return D2O(**(options | changes))


def _batch(images, noise, labels=None):
    return Batch(images=images, condition=labels, random=Recorded(noise), images_seen=0)


def _random_game(*, rows=4, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    images, noise = (torch.randn(rows, 2, 3, 3, generator=generator, dtype=dtype) for _ in range(2))
    matrices = torch.randn(2, 18, 5, generator=generator, dtype=dtype)
    networks = {"generator": Affine(weight=0.6, bias=0.1, sigma=80.0).to(dtype), "discriminator": Critics(matrices)}
    return networks, images, noise


def _gradients(phase, networks, batch):
    network = networks[phase.trains]
    network.zero_grad()
    (phase.loss(networks, batch).value * phase.gain).backward()
    return [parameter.grad.clone() for parameter in network.parameters()]


@pytest.mark.golden
def test_gradients_of_all_phases_equal_the_recordings(golden):
    constants, arrays = golden.parameters["loss_stages"], golden.load("loss_stages.npz")
    images, noise, matrices = (torch.from_numpy(arrays[key]) for key in ("images", "z_first_draw", "W"))
    for loss in golden.cases(arrays):
        objective = _objective(
            loss=_RECORDED_LOSS[loss],
            sigma=float(golden.said("loss_stages.npz", r"v/([\d.]*\d)")),
            rows_per_rank=float(len(images)),
            r1_gamma=float(constants["r1_gamma"]),
            r1_every=constants["r1_gain"],
        )
        generator = Affine(weight=float(constants["w"]), bias=float(constants["b"]), sigma=objective.sigma)
        networks = {"generator": generator, "discriminator": Critics(matrices.clone())}
        made, judged, penalised = objective.phases()
        found = dict(zip(("G/grad_gw", "G/grad_gb"), _gradients(made, networks, _batch(images, noise)), strict=True))
        found |= {"D/grad_W": _gradients(judged, networks, _batch(images, noise))[0]}
        found |= {"R1/grad_W": _gradients(penalised, networks, _batch(images, noise))[0]}
        for key, gradient in found.items():
            wanted = arrays[f"{loss}/{key}"]
            np.testing.assert_allclose(
                gradient, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max(), err_msg=f"{loss}/{key}"
            )


@pytest.mark.parametrize("loss", ["non_saturating", "hinge"])
def test_losses_are_the_published_formulas(loss):
    networks, images, noise = _random_game()
    objective = _objective(loss=loss, rows_per_rank=7.0)
    fake = networks["discriminator"](0.6 * noise + 0.1, None).double()
    real = networks["discriminator"](images, None).double()
    if loss == "hinge":
        made, judged = -fake, (1 + fake).clamp(min=0) + (1 - real).clamp(min=0)
    else:
        made, judged = -fake.sigmoid().log(), -(1 - fake.sigmoid()).log() - real.sigmoid().log()
    # Two critics of five logits each: a mean over five, a sum over two.
    for found, wanted in ((objective.generator_loss, made), (objective.discriminator_loss, judged)):
        value = found(networks, _batch(images, noise)).value.double()
        torch.testing.assert_close(value, 7.0 * wanted.sum(dim=1).mean() / 5, rtol=1e-5, atol=0)


def test_penalty_equals_finite_differences():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.SiLU(), nn.Conv2d(3, 2, 3), nn.SiLU(), nn.Flatten(1)
    ).double()
    images = torch.randn(2, 1, 4, 4, dtype=torch.float64)
    step = 1e-5
    squares = 0.0
    for entry in range(images.numel()):
        nudge = torch.zeros_like(images)
        nudge.view(-1)[entry] = step
        slope = (network(images + nudge).sum() - network(images - nudge).sum()) / (2 * step)
        squares += slope.item() ** 2
    loss = _objective(r1_gamma=0.3).r1_loss({"discriminator": lambda x, labels: network(x)}, _batch(images, images))
    assert loss.observed["r1_penalty"].item() == pytest.approx(squares / len(images), rel=1e-7)
    assert loss.value.item() == pytest.approx(0.3 / 2 * squares / len(images), rel=1e-7)


def test_penalty_has_the_gradient_of_its_finite_differences():
    networks, images, noise = _random_game(dtype=torch.float64)
    objective, discriminator = _objective(), networks["discriminator"]
    objective.r1_loss(networks, _batch(images, noise)).value.backward()
    generator = torch.Generator().manual_seed(1)
    direction = torch.randn(discriminator.matrices.shape, generator=generator, dtype=torch.float64)

    def value(step):
        moved = {"discriminator": Critics((discriminator.matrices + step * direction).detach())}
        return objective.r1_loss(moved, _batch(images, noise)).value.item()

    wanted = (value(1e-5) - value(-1e-5)) / 2e-5
    assert (discriminator.matrices.grad * direction).sum().item() == pytest.approx(wanted, rel=1e-7)


def test_two_halves_of_a_batch_average_to_the_whole():
    networks, images, noise = _random_game()
    for phase in _objective(rows_per_rank=64.0).phases():
        whole = phase.loss(networks, _batch(images, noise)).value
        halves = [phase.loss(networks, _batch(images[part], noise[part])).value for part in (slice(0, 2), slice(2, 4))]
        torch.testing.assert_close(sum(halves) / 2, whole)


def test_each_loss_reaches_only_whom_its_phase_trains_when_the_others_are_held():
    networks, images, noise = _random_game()
    for phase in _objective().phases():
        for role, network in networks.items():
            network.requires_grad_(role == phase.trains)
            network.zero_grad()
        phase.loss(networks, _batch(images, noise)).value.backward()
        for role, network in networks.items():
            assert all((parameter.grad is not None) == (role == phase.trains) for parameter in network.parameters())


def test_generated_images_are_judged_first_and_apart_from_real_ones():
    networks, images, noise = _random_game()
    heads, seen = networks["discriminator"].heads, []
    networks["discriminator"].heads = lambda features, labels: [seen.append(features[0][0]), heads(features, labels)][1]
    _objective().discriminator_loss(networks, _batch(images, noise))
    generated, real = seen
    torch.testing.assert_close(generated, (0.6 * noise + 0.1).flatten(1).tanh())
    assert not generated.requires_grad
    torch.testing.assert_close(real, images.flatten(1).tanh())


def test_both_networks_are_given_the_labels_of_the_real_rows():
    networks, images, noise = _random_game()
    labels, given = torch.eye(4), []
    networks["generator"].register_forward_pre_hook(lambda module, inputs: given.append(inputs[-1]))
    heads = networks["discriminator"].heads
    networks["discriminator"].heads = lambda features, labels: [given.append(labels), heads(features, labels)][1]
    for phase in _objective().phases():
        phase.loss(networks, _batch(images, noise, labels))
    assert len(given) == 2 + 4 and all(g is labels for g in given)


def test_penalty_is_a_lazy_step_that_makes_up_for_its_pauses():
    made, judged, penalised = _objective(r1_every=8).phases()
    assert [phase.trains for phase in (made, judged, penalised)] == ["generator", "discriminator", "discriminator"]
    assert (made.every, judged.every, penalised.every) == (1, 1, 8)
    assert (made.gain, judged.gain, penalised.gain) == (1.0, 1.0, 8.0)


@pytest.mark.parametrize(
    "wrong",
    [{"loss": "wasserstein"}, {"sigma": 0.0}, {"rows_per_rank": -1.0}, {"r1_every": 0}, {"r1_gradient": "none"}],
)
def test_wrong_options_are_refused_with_their_value(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=f"{name} {value!r}: expected"):
        _objective(**wrong)


def test_the_largest_logit_is_observed_where_a_run_requests_it():
    networks, images, noise = _random_game()
    plain, extreme = (
        _objective(observe=observe).discriminator_loss(networks, _batch(images, noise))
        for observe in (None, "extremes")
    )
    fake, real = (networks["discriminator"](each, None) for each in (0.6 * noise + 0.1, images))
    assert extreme.observed["logit_max"] == pytest.approx(float(torch.cat([fake, real]).abs().max().detach()))
    assert extreme.observed.keys() - plain.observed.keys() == {"logit_max"} and extreme.value == plain.value
