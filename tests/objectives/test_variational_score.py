"""Variational score distillation: recordings of the references, closed forms, what has no gradient, what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from onestep.objectives import Batch
from onestep.objectives.edm import Edm
from onestep.objectives.variational_score import (
    VariationalScore,
    distribution_matching,
    integral_kl,
    score_identity,
)
from onestep.training.streams import CountedRows
from recorded_studies import Replayed, assert_close, constants, denoiser, studies_of, tensors, tolerance

_FILE, _DISTILL = "score_based.npz", "f_distill.npz"
RATIO = {"name": "density_ratio", "divergence": "forward_kl", "noise": "dmd2"}
LOSSES = {
    "diff_instruct": {},
    "dmd": {"loss": "dmd", "grid": (0.02, 0.98), "fake_grid": (0.0, 1.0)},
    "f_distill": {"loss": "dmd", "ratio": RATIO, "grid": (0.02, 0.98), "fake_grid": (0.0, 1.0)},
    "sid": {"loss": "sid", "alpha": 1.2, "grid": (0.0, 0.8), "scale": 100.0},
}


class Images(nn.Module):
    """A generator that makes the recorded images whatever its noise."""

    def __init__(self, images):
        super().__init__()
        self.images = nn.Parameter(images.clone())

    def forward(self, noisy, sigma, condition):
        return self.images


@pytest.fixture(scope="module")
def recorded(golden):
    return studies_of(golden)


@pytest.fixture(scope="module")
def arrays(recorded):
    return recorded.load(_FILE)


@pytest.fixture
def networks(arrays, recorded):
    """The recorded images as a generator, teacher and fake score."""
    resolution = constants(recorded, _FILE)["R"]
    pair = {role: denoiser(arrays, role, law="edm", resolution=resolution) for role in ("teacher", "fake")}
    return {"generator": Images(torch.from_numpy(arrays["x"])), **pair}


def _batch(networks, *draws):
    """Return a batch whose first draw, the generator's noise, is ignored."""
    images = networks["generator"].images.detach()
    return Batch(images=images, condition=None, random=Replayed(images, *draws), images_seen=0)


def _compare(recorded, loss, networks, *, value, slope, what):
    """Compare a loss and its gradient for the images with recordings."""
    share = tolerance(recorded, _FILE, r"rel ([\d.e-]+\d) on losses")
    torch.testing.assert_close(loss.value, value, rtol=share, atol=0)
    networks["generator"].zero_grad()
    loss.value.backward()
    share = tolerance(recorded, _FILE, r"grads rel ([\d.e-]+\d)")
    assert_close(networks["generator"].images.grad, slope, share=share, what=what)


@pytest.mark.golden
def test_diff_instruct_equals_the_recording(recorded, arrays, networks):
    case = tensors(arrays, "diff_instruct/")
    objective = VariationalScore()
    normal = (case["sigma"].log() - objective.p_mean) / objective.p_std
    loss = objective.generator_loss(networks, _batch(networks, normal, case["eps"]))
    rows = len(case["sigma"])
    _compare(
        recorded, loss, networks, value=case["loss"].sum() / rows, slope=case["grad_x_of_sum"] / rows, what="images"
    )


@pytest.mark.golden
def test_sid_equals_the_recordings(recorded, arrays, networks):
    own = constants(recorded, _FILE)
    for alpha in own["alpha"]:
        case = tensors(arrays, f"sid/{alpha}/")
        objective = VariationalScore(loss="sid", alpha=alpha, grid=(0.0, own["tmax"] / own["T"]), scale=100.0)
        loss = objective.generator_loss(networks, _batch(networks, case["u"], case["eps"]))
        share = 100.0 / len(case["u"])
        _compare(
            recorded,
            loss,
            networks,
            value=share * case["loss"].sum(),
            slope=share * case["grad_x_of_sum"],
            what=f"alpha {alpha}",
        )


@pytest.mark.golden
def test_dmd_equals_the_recording(recorded, arrays, networks):
    own, case = constants(recorded, _FILE), tensors(arrays, "dmd2/")
    position = case["dm/step"].float() / (own["T"] - 1)
    low, high = 0.02, 0.98
    objective = VariationalScore(loss="dmd", grid=(low, high), fake_grid=(0.0, 1.0))
    random = _batch(networks, (position - low) / (high - low), case["dm/eps"])
    levels = objective.noise_levels(replace(random, random=Replayed(position)), (0.0, 1.0))
    torch.testing.assert_close(levels, case["karras_sigmas"][case["dm/step"]], rtol=1e-4, atol=0)
    loss = objective.generator_loss(networks, random)
    _compare(recorded, loss, networks, value=case["dm/loss"], slope=case["dm/grad_x"], what="images")

    position = case["fake/step"].float() / (own["T"] - 1)
    fake = objective.fake_loss(networks, _batch(networks, position, case["fake/eps"]))
    _compare_fake(recorded, fake, networks, value=case["fake/loss"], case=tensors(arrays, "dmd2/fake/grad/"))


@pytest.mark.golden
def test_the_loss_of_the_fake_score_equals_the_recording(recorded, arrays, networks):
    case = tensors(arrays, "edm_loss/")
    objective = VariationalScore()
    normal = (case["sigma"].log() - objective.p_mean) / objective.p_std
    fake = objective.fake_loss(networks, _batch(networks, normal, case["eps"]))
    _compare_fake(recorded, fake, networks, value=case["loss"].mean(), case=tensors(arrays, "edm_loss/grad/"))


def _compare_fake(recorded, loss, networks, *, value, case):
    """Compare the fake score's loss, a mean over pixels in the recording and a sum here, and its gradients."""
    pixels = networks["generator"].images[0].numel()
    share = tolerance(recorded, _FILE, r"rel ([\d.e-]+\d) on losses")
    torch.testing.assert_close(loss.value / pixels, value, rtol=share, atol=0)
    torch.testing.assert_close(loss.observed["denoising_error"], value, rtol=share, atol=0)
    networks["fake"].zero_grad()
    (loss.value / pixels).backward()
    assert case
    for name, wanted in case.items():
        found = getattr(networks["fake"].model, name).grad
        if wanted.any():
            assert_close(found, wanted, share=tolerance(recorded, _FILE, r"grads rel ([\d.e-]+\d)"), what=name)
        else:
            assert found is None


@pytest.mark.golden
def test_f_distill_s_weighted_loss_and_its_gradient_equal_the_recording(recorded):
    case = tensors(recorded.load(_DISTILL), "vsd/")
    share = tolerance(recorded, _DISTILL, r"rel ([\d.e-]+\d)")
    for kind, weight in (("plain", None), ("scaled", case["scale"])):
        images = case["gen"].clone().requires_grad_()
        loss = distribution_matching(images, teacher=case["teacher_x0"], fake=case["fake_x0"], weight=weight).mean()
        torch.testing.assert_close(loss, case[f"{kind}/loss"], rtol=share, atol=0)
        loss.backward()
        assert_close(images.grad, case[f"{kind}/grad_gen"], share=share, what=kind)


class Affine(nn.Module):
    """A generator m + s z of independent pixels, from noise of any level."""

    def __init__(self, mean, deviation):
        super().__init__()
        self.mean, self.deviation = (nn.Parameter(torch.tensor(each)) for each in (mean, deviation))

    def forward(self, noisy, sigma, condition):
        return self.mean + self.deviation * noisy / sigma[:, None, None, None]


class Exact(nn.Module):
    """The best denoiser of independent normal pixels; of a generator it follows that one's parameters."""

    def __init__(self, mean, deviation):
        super().__init__()
        self.mean, self.deviation = mean, deviation

    def forward(self, noisy, sigma, condition):
        inner, outer = self.deviation**2, sigma[:, None, None, None] ** 2
        return (inner * noisy + outer * self.mean) / (inner + outer)


def _exact(mean, deviation, *, of=(0.3, 0.6)):
    """Return a generator, its exact fake score, and the exact denoiser of the real images."""
    generator = Affine(mean, deviation)
    fake = Exact(generator.mean.detach(), generator.deviation.detach())  # they share storage
    return {"generator": generator, "teacher": Exact(*of), "fake": fake, "ratio": Even()}


class Even(nn.Module):
    """A log ratio of 0: real and generated images are as likely."""

    def forward(self, noisy, sigma, condition):
        return noisy.new_zeros(len(noisy))


def _rows(count, *, phase="generator", seed=1, first=0, side=1):
    rows = range(first, first + count)
    random = CountedRows(seed=seed, phase=phase, rows=rows, device=torch.device("cpu"))
    return Batch(images=torch.zeros(count, 1, side, side), condition=None, random=random, images_seen=0)


@pytest.mark.parametrize("name", LOSSES)
def test_no_gradient_where_the_two_scores_agree(name):
    networks = _exact(0.3, 0.6, of=(0.3, 0.6))
    loss = VariationalScore(**LOSSES[name]).generator_loss(networks, _rows(50, side=2))
    loss.value.backward()
    generator = networks["generator"]
    assert loss.observed["score_difference"] < 1e-12
    assert generator.mean.grad.abs() < 1e-5 and generator.deviation.grad.abs() < 1e-5


def test_diff_instruct_is_the_gradient_of_kl_divergences_in_closed_form():
    """Of N(m, s^2) from N(a, b^2), both with noise of variance v: times v, (m - a) / (b^2 + v), s / . - s / .."""
    mean, deviation, real_mean, real_deviation = 0.9, 0.4, 0.3, 0.6
    networks, objective = _exact(mean, deviation, of=(real_mean, real_deviation)), VariationalScore()
    objective.generator_loss(networks, _rows(2_000, side=5)).value.backward()
    variance = (
        objective.p_mean + objective.p_std * torch.special.ndtri(torch.linspace(0, 1, 4001)[1:-1].double())
    ).exp() ** 2
    of_real, of_generated = real_deviation**2 + variance, deviation**2 + variance
    by_mean = 25 * (variance * (mean - real_mean) / of_real).mean()
    by_deviation = 25 * (variance * (deviation / of_real - deviation / of_generated)).mean()
    generator = networks["generator"]
    assert float(generator.mean.grad) == pytest.approx(float(by_mean), rel=0.03)
    assert float(generator.deviation.grad) == pytest.approx(float(by_deviation), rel=0.1)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.2])
def test_sid_without_its_denominator_is_the_squared_difference_of_exact_scores(alpha):
    torch.manual_seed(0)
    teacher, fake = Exact(0.3, 0.6), Exact(0.9, 0.4)
    images = 0.9 + 0.4 * torch.randn(200_000, 1, 1, 1)
    sigma = torch.full((len(images),), 0.7)
    noisy = images + 0.7 * torch.randn_like(images)
    real, own = teacher(noisy, sigma, None), fake(noisy, sigma, None)
    found = score_identity(images, teacher=real, fake=own, alpha=alpha) * (images - real).abs()
    wanted = (1 - alpha) * (real - own).square().mean()
    assert float(found.mean()) == pytest.approx(float(wanted), abs=4e-3 * float((real - own).square().mean()) + 1e-3)


def test_dmd_is_diff_instruct_in_units_of_the_distance_to_the_teachers_image():
    torch.manual_seed(0)
    teacher, fake = torch.randn(2, 4, 1, 3, 3)
    images = torch.randn(4, 1, 3, 3, requires_grad=True)
    weight = torch.tensor([1.0, 2.0, 0.5, 0.0])
    (plain,) = torch.autograd.grad(integral_kl(images, teacher=teacher, fake=fake).sum(), images)
    matched = distribution_matching(images, teacher=teacher, fake=fake, weight=weight)
    (found,) = torch.autograd.grad(matched.sum(), images)
    units = (images - teacher).detach().abs().mean(dim=(1, 2, 3))
    torch.testing.assert_close(found, (weight / units)[:, None, None, None] * plain, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_exact_scores_lead_the_generator_to_the_data(name):
    networks = _exact(1.5, 0.2, of=(0.3, 0.6))
    objective, generator = VariationalScore(**LOSSES[name]), networks["generator"]
    optimizer = torch.optim.Adam(generator.parameters(), lr=0.05, betas=(0.5, 0.99))
    for step in range(100):
        optimizer.zero_grad()
        objective.generator_loss(networks, _rows(16, first=16 * step, side=4)).value.backward()
        optimizer.step()
    assert generator.mean.item() == pytest.approx(0.3, abs=0.02)
    assert generator.deviation.item() == pytest.approx(0.6, abs=0.02)


class Slope(nn.Module):
    """A log ratio that is a sum over pixels."""

    def __init__(self, weight=0.1):
        super().__init__()
        self.weight, self.given = nn.Parameter(torch.tensor(weight)), []

    def forward(self, noisy, sigma, condition):
        self.given.append((sigma, condition))
        return self.weight * noisy.flatten(1).sum(dim=1)


class Shift(nn.Module):
    """A denoiser of one number that keeps what it is given."""

    def __init__(self, weight):
        super().__init__()
        self.weight, self.given = nn.Parameter(torch.tensor(weight)), []

    def forward(self, noisy, sigma, condition):
        self.given.append((sigma, condition))
        shift = 0.0 if condition is None else condition.argmax(dim=1)[:, None, None, None]
        return self.weight * noisy / (1 + sigma[:, None, None, None]) + 0.1 * shift


def _shifts():
    return {"generator": Shift(0.5), "teacher": Shift(0.3), "fake": Shift(0.7), "ratio": Slope()}


@pytest.mark.parametrize("name", LOSSES)
def test_two_halves_of_a_batch_average_to_the_whole(name):
    objective = VariationalScore(**LOSSES[name])
    for phase in objective.phases():
        whole, *halves = (
            phase.loss(_shifts(), _rows(count, phase=phase.name, first=first, side=4)).value
            for first, count in ((0, 6), (0, 3), (3, 3))
        )
        torch.testing.assert_close(sum(halves) / 2, whole)


@pytest.mark.parametrize("name", LOSSES)
def test_each_phase_trains_its_network_and_all_see_the_conditions(name):
    objective, condition = VariationalScore(**LOSSES[name]), torch.eye(6)
    for phase in objective.phases():
        networks = _shifts()
        for role, network in networks.items():
            network.requires_grad_(role == phase.trains)
        phase.loss(networks, replace(_rows(6, side=4), condition=condition)).value.backward()
        assert {role for role, each in networks.items() if each.weight.grad is not None} == {phase.trains}
        used = {phase.trains, "generator"} | ({"teacher", "fake"} if phase.name == "generator" else set())
        used |= {"ratio"} if (name, phase.name) == ("f_distill", "generator") else set()
        assert {role for role, each in networks.items() if each.given} == used
        given = [given for role, each in networks.items() if role != "ratio" for _, given in each.given]
        assert all(each is condition for each in given)
        assert all((sigma == 2.5).all() for sigma, _ in networks["generator"].given)


def test_a_weight_multiplies_each_image_s_direction_by_h_of_its_ratio():
    """With l = 0.1 times the sum over pixels and h(r) = r, against the loss without a weight."""
    noisy, kept = [], {}
    for name in ("dmd", "f_distill"):
        networks = _shifts()
        networks["ratio"].register_forward_pre_hook(lambda module, inputs: noisy.append(inputs[0]))
        objective = VariationalScore(**LOSSES[name])
        rows = [objective.generator_loss(networks, _rows(1, first=row, side=2)).value.item() for row in range(4)]
        kept[name] = torch.tensor(rows)
    ratios = torch.stack([(0.1 * each.sum()).exp() for each in noisy])
    torch.testing.assert_close(kept["f_distill"], ratios.detach().square() * kept["dmd"], rtol=1e-4, atol=0)


def test_a_normalisation_follows_the_ratios_it_sees():
    objective = VariationalScore(**{**LOSSES["f_distill"], "ratio": {**RATIO, "normalise": 0.5}})
    generator = next(each for each in objective.phases() if each.name == "generator")
    (control,) = generator.controls
    loss = generator.loss(_shifts(), _rows(6, side=4))
    seen = loss.observed[control.observes]
    moved = control.rule(control.start, mean=seen.tolist(), images=6)
    assert len(moved) == len(control.start) and moved != control.start


def test_the_fake_score_learns_as_a_denoiser_of_the_generated_images():
    objective, networks = VariationalScore(), _shifts()
    found = objective.fake_loss(networks, _rows(6, phase="fake", side=4)).value
    again = _rows(6, phase="fake", side=4)
    images = objective.generate(networks["generator"], again).detach()
    wanted = Edm().generator_loss({"generator": networks["fake"]}, replace(again, images=images)).value
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_noise_levels_are_those_of_a_part_of_the_grid():
    objective = VariationalScore()
    ends = objective.noise_levels(replace(_rows(2), random=Replayed(torch.tensor([0.0, 1.0]))), (0.0, 1.0))
    torch.testing.assert_close(ends, torch.tensor([0.002, 80.0]), rtol=1e-5, atol=0)
    low, high = 0.02, 0.98
    levels = objective.noise_levels(_rows(4000), (low, high))
    ends = [80 ** (1 / 7), 0.002 ** (1 / 7)]
    positions = (levels ** (1 / 7) - ends[1]) / (ends[0] - ends[1])
    shares = positions.histc(8, low, high) / len(positions)
    assert low - 1e-4 <= positions.min() and positions.max() <= high + 1e-4
    assert (shares - 1 / 8).abs().max() < 0.03
    logs = objective.noise_levels(_rows(4000), None).log()
    assert float(logs.mean()) == pytest.approx(-1.2, abs=0.1) and float(logs.std()) == pytest.approx(1.2, rel=0.05)


def test_the_ratio_of_updates_is_that_of_the_phases():
    assert [(each.name, each.trains, each.every) for each in VariationalScore(updates=5).phases()] == [
        ("fake", "fake", 1),
        ("generator", "generator", 5),
    ]
    weighted = VariationalScore(**LOSSES["f_distill"], updates=2)
    assert [(each.trains, each.every) for each in weighted.phases()] == [("fake", 1), ("ratio", 1), ("generator", 2)]
    assert list(weighted.networks()) == ["generator", "teacher", "fake", "ratio"]
    origins = VariationalScore().networks()
    assert list(origins) == ["generator", "teacher", "fake"]
    assert (origins["teacher"].frozen, origins["fake"].frozen, origins["fake"].dropout) == (True, False, 0.0)


@pytest.mark.parametrize(
    ("wrong", "part"),
    [
        ({"loss": "sid"}, "^alpha: got None"),
        ({"alpha": 1.0}, "^alpha: got 1.0 with loss: diff_instruct"),
        ({"ratio": RATIO}, "^ratio: .* with loss: diff_instruct"),
        ({"loss": "dmd", "ratio": {"name": "edm"}}, "^ratio: "),
        ({"loss": "dmd", "ratio": {**RATIO, "sigma": 80.0}}, "^ratio.sigma: got 80.0"),
        ({"loss": "dmd", "ratio": {**RATIO, "ratio_steps": 2}}, "^ratio.ratio_steps: got 2"),
        ({"grid": (0.8, 0.0)}, "^grid: "),
        ({"fake_grid": (0.5, 0.5)}, "^fake_grid: "),
    ],
)
def test_wrong_options_are_refused_in_one_line(wrong, part):
    with pytest.raises(ValueError, match=part) as error:
        VariationalScore(**wrong)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("phase", ["fake", "generator"])
@pytest.mark.parametrize("name", LOSSES)
def test_its_memory_is_known_without_values(name, phase):
    meta = torch.device("meta")
    networks = {role: each.to(meta) for role, each in _shifts().items()}
    random = CountedRows(seed=1, phase=phase, rows=range(6), device=meta)
    batch = Batch(images=torch.zeros(6, 1, 4, 4, device=meta), condition=None, random=random, images_seen=0)
    (chosen,) = (each for each in VariationalScore(**LOSSES[name]).phases() if each.name == phase)
    loss = chosen.loss(networks, batch)
    loss.value.backward()
    assert loss.value.is_meta and networks[phase].weight.grad is not None
