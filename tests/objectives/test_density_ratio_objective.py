"""Density ratios: recordings and closed forms, what the gradients are, and that every divergence trains."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
from torch import nn

from onestep.objectives import Batch
from onestep.objectives._divergences import DIVERGENCES, Normalisation, surrogate
from onestep.objectives._noise_laws import (
    cosine_betas,
    equal_chances,
    linear_betas,
    noise_levels,
    priorities,
    progressed,
    sigma_of,
    steps_at,
)
from onestep.objectives.density_ratio import DensityRatio
from onestep.training.streams import CountedRows
from recorded_studies import constants, studies_of, tolerance

_RATIO, _DISTILL, _SCHEDULES = "density_ratio.npz", "f_distill.npz", "noising_schedules.npz"
_CLOSED = {"squared_hellinger": "hellinger"}  # the names that differ
_SHORT = {
    "rkl": "reverse_kl",
    "kl": "forward_kl",
    "js": "jensen_shannon",
    "sf": "softened_reverse_kl",
    "neyman": "neyman",
    "sh": "hellinger",
    "jf": "jeffreys",
}


@pytest.fixture(scope="module")
def recorded(golden):
    return studies_of(golden)


def _double(array):
    return torch.from_numpy(np.asarray(array, dtype=np.float64))


# Closed forms.


@pytest.mark.golden
def test_h_and_phi_equal_the_recordings(recorded):
    arrays, own = recorded.load(_RATIO), constants(recorded, _RATIO)
    share = tolerance(recorded, _RATIO, r"rel ([\d.e-]+\d) for phi")
    logits = torch.tensor(own["logits"], dtype=torch.float64)
    names = [key.removeprefix("phi/") for key in arrays if key.startswith("phi/")]
    assert len(names) == 6
    for name in names:
        divergence = DIVERGENCES[_CLOSED.get(name, name)]
        torch.testing.assert_close(divergence.phi(logits), _double(arrays[f"phi/{name}"]), rtol=share, atol=0)
        torch.testing.assert_close(divergence.h(logits.exp()), _double(arrays[f"h/{name}"]), rtol=share, atol=0)


def _log_density(x, mixture, sigma):
    parts = [
        math.log(weight) - math.log(math.hypot(width, sigma)) - (x - mean) ** 2 / (2 * (width**2 + sigma**2))
        for weight, mean, width in mixture
    ]
    return torch.logsumexp(torch.stack(parts), dim=0) - 0.5 * math.log(2 * math.pi)


def _log_ratio(x, own, sigma, *, m=None, s=None):
    generator = [(1.0, own["m"] if m is None else m, own["s"] if s is None else s)]
    return _log_density(x, own["data"], sigma) - _log_density(x, generator, sigma)


@pytest.mark.golden
def test_divergences_and_gradients_of_gaussians_equal_the_recordings(recorded):
    """By quadrature of f, and of -E[h(r) d log r / dx dG] with G = m + s z and x = G + sigma n."""
    arrays, own = recorded.load(_RATIO), constants(recorded, _RATIO)
    share = tolerance(recorded, _RATIO, r"grads rel ([\d.e-]+\d)")
    close = tolerance(recorded, _RATIO, r"rel ([\d.e-]+\d) for phi")
    m, s = own["m"], own["s"]
    grid = torch.linspace(-own["L"], own["L"], own["n"], dtype=torch.float64)
    step = grid[1] - grid[0]
    for sigma in own["sigma"]:
        points = _double(arrays["x"]).requires_grad_()
        at = _log_ratio(points, own, sigma)
        (force,) = torch.autograd.grad(at.sum(), points)
        torch.testing.assert_close(at.detach(), _double(arrays[f"sigma{sigma}/log_ratio"]), rtol=close, atol=close)
        recorded_force = _double(arrays[f"sigma{sigma}/score_difference"])
        torch.testing.assert_close(force, recorded_force, rtol=close, atol=close)
        x = grid.clone().requires_grad_()
        log_ratios = _log_ratio(x, own, sigma)
        (slopes,) = torch.autograd.grad(log_ratios.sum(), x)
        density = (_log_density(grid, [(1.0, m, s)], sigma).exp() * step).detach()
        z = s * (grid - m) / (s**2 + sigma**2)  # mean of z given x
        ratios = log_ratios.detach().exp()
        for name in ("reverse_kl", "forward_kl", "jensen_shannon", "softened_reverse_kl", "hellinger", "jeffreys"):
            key = {value: key for key, value in _CLOSED.items()}.get(name, name)
            wanted = {each: float(arrays[f"sigma{sigma}/{key}/{each}"]) for each in ("divergence", "grad_m", "grad_s")}
            force = DIVERGENCES[name].h(ratios) * slopes
            found = {"divergence": (density * DIVERGENCES[name].f(ratios)).nansum()}
            found |= {"grad_m": -(density * force).sum(), "grad_s": -(density * force * z).sum()}
            assert {k: float(v) for k, v in found.items()} == pytest.approx(wanted, rel=share), f"{name} {sigma}"


class Scripted:
    """Random numbers from a list, normal or uniform."""

    def __init__(self, *draws):
        self.draws = list(draws)

    def normal(self, *shape):
        return self.draws.pop(0).reshape(-1, *shape)

    def uniform(self, *shape):
        return self.draws.pop(0)


class Affine(nn.Module):
    """G = m + s z of z = x / sigma."""

    def __init__(self, m, s, sigma):
        super().__init__()
        self.m, self.s = (nn.Parameter(torch.tensor(each, dtype=torch.float64)) for each in (m, s))
        self.sigma = sigma

    def forward(self, x, sigma, condition):
        return self.m + self.s * x / self.sigma


@pytest.mark.golden
@pytest.mark.parametrize("divergence", ["reverse_kl", "jensen_shannon", "softened_reverse_kl", "hellinger"])
def test_the_generator_s_gradient_is_that_of_the_divergence(recorded, divergence, monkeypatch):
    """With the exact log ratio as the network, on the midpoints of a table of equally likely z and n."""
    arrays, own = recorded.load(_RATIO), constants(recorded, _RATIO)
    side, sigma = 400, own["sigma"][0]
    middles = torch.special.ndtri((torch.arange(side, dtype=torch.float64) + 0.5) / side)
    z, n = torch.cartesian_prod(middles, middles).T
    level = torch.full((side * side,), sigma, dtype=torch.float64)
    objective = DensityRatio(divergence=divergence, weighting="uniform", clip=50.0)
    monkeypatch.setattr(DensityRatio, "levels", lambda self, batch: level)
    generator = Affine(own["m"], own["s"], objective.sigma)
    networks = {"generator": generator, "ratio": lambda x, s, c: _log_ratio(x.flatten(), own, sigma)}
    images = torch.zeros(side * side, 1, 1, 1, dtype=torch.float64)
    batch = Batch(images=images, condition=None, random=Scripted(z, n), images_seen=0)
    objective.generator_loss(networks, batch).value.backward()
    key = {value: key for key, value in _CLOSED.items()}.get(divergence, divergence)
    for name in ("m", "s"):
        wanted = float(arrays[f"sigma{sigma}/{key}/grad_{name}"])
        assert float(getattr(generator, name).grad) == pytest.approx(wanted, rel=0.02), name


# f-distill.


@pytest.mark.golden
def test_weights_of_f_distill_equal_the_recordings_over_consecutive_calls(recorded):
    arrays, own = recorded.load(_DISTILL), constants(recorded, _DISTILL)
    share = tolerance(recorded, _DISTILL, r"rel ([\d.e-]+\d) \(float32\)")
    exact = tolerance(recorded, _DISTILL, r"h and ect rel ([\d.e-]+\d)")
    ratios = torch.tensor(own["ratios"], dtype=torch.float64)
    normal = Normalisation(rate=own["ema"])
    for short, name in _SHORT.items():
        scale = 4 if name == "hellinger" else 1  # of theirs, sqrt r: without effect once it is divided by its mean
        h = DIVERGENCES[name].h
        torch.testing.assert_close(scale * h(ratios), _double(arrays[f"h/{short}"]), rtol=exact, atol=0)
        averages = (1.0,) * normal.bins
        for call in range(own["calls"]):
            log_ratios = torch.from_numpy(arrays["logits"][call]).mean(dim=1).clamp(-10, 10)
            sigma, found = torch.from_numpy(arrays["t"][call]), {}
            clipped = normal.clipped(log_ratios.exp())
            totals, shares = normal.observed(clipped, sigma).tolist()
            averages = normal.updated(averages, totals=totals, shares=shares)
            quotients = normal.quotients(clipped, sigma, averages=torch.tensor(averages))
            for kind, given in (("binned", quotients), ("plain", clipped)):
                found = scale * h(given)
                wanted = torch.from_numpy(arrays[f"weight/{short}/{kind}/{call}"])
                weights = normal.weights(found, mean=found.mean())
                torch.testing.assert_close(weights, wanted, rtol=share, atol=0, msg=f"{short} {kind} {call}")
        assert averages == pytest.approx(arrays[f"bins/{short}"].tolist(), rel=share)


@pytest.mark.golden
def test_the_losses_of_a_gan_equal_the_recordings(recorded):
    """A ratio network with several heads is there a mean over them of the same losses."""
    arrays, share = recorded.load(_DISTILL), tolerance(recorded, _DISTILL, r"rel ([\d.e-]+\d) \(float32\)")
    fake, real = (torch.from_numpy(arrays[f"gan/{name}"]).flatten() for name in ("fake", "real"))
    generator = DIVERGENCES["softened_reverse_kl"].phi(fake).mean()
    torch.testing.assert_close(generator, torch.from_numpy(arrays["gan/generator"]), rtol=share, atol=0)

    def scores(x, sigma, condition):
        return torch.cat([real, fake])

    images = torch.zeros(len(real), 1, 1, 1)
    random = CountedRows(seed=0, phase="ratio", rows=range(len(real)), device=torch.device("cpu"))
    batch = Batch(images=images, condition=None, random=random, images_seen=0)
    loss = DensityRatio(divergence="jensen_shannon").ratio_loss(
        {"generator": lambda x, s, c: x, "ratio": scores}, batch
    )
    torch.testing.assert_close(loss.value, torch.from_numpy(arrays["gan/discriminator"]), rtol=share, atol=0)


# Noise levels.


@pytest.mark.golden
def test_diffusion_gan_s_schedule_equals_the_recordings(recorded):
    arrays, own = recorded.load(_SCHEDULES), constants(recorded, _SCHEDULES)
    share = tolerance(recorded, _SCHEDULES, r"rel ([\d.e-]+\d)")
    for steps in own["T"]:
        for name, found in (("linear", linear_betas(steps, 1e-4, 0.02)), ("cosine", cosine_betas(steps))):
            torch.testing.assert_close(_double(found), _double(arrays[f"betas/{name}/{steps}"]), rtol=share, atol=0)
    for (name, law), p in product({"priority": priorities, "uniform": equal_chances}.items(), own["p"]):
        case = f"{name}/p{p}"
        steps = steps_at(p, fewest=own["t_min"], most=own["t_max"])
        assert sum(law(steps)) == pytest.approx(1)
        assert steps == int(arrays[f"{case}/T"])
        kept, noise = (_double(arrays[f"{case}/{name}"]) for name in ("alphas_bar_sqrt", "one_minus"))
        levels = sigma_of(linear_betas(steps, 1e-4, 0.02))
        # Their float32 1 - abar has lost digits at the first steps.
        torch.testing.assert_close(1 / (1 + levels.square()).sqrt(), kept, rtol=share, atol=0)
        torch.testing.assert_close(levels * kept, noise, rtol=share, atol=1e-4)
        random = np.random.RandomState(own["seed"])
        # Without probabilities, numpy draws the uniform law by another algorithm.
        drawn = random.choice(np.arange(1, steps + 1), size=32, p=None if name == "uniform" else law(steps))
        assert [*drawn, *[0] * 32] == arrays[f"{case}/t_epl"].tolist()
        # Noisy images are those of our levels up to the factor.
        t = torch.from_numpy(arrays[f"{case}/t"])
        scaled = kept[t].reshape(-1, 1, 1, 1)
        noisy = _double(arrays["x"]) + 0.05 * levels[t].reshape(-1, 1, 1, 1) * _double(arrays[f"{case}/eps"])
        torch.testing.assert_close(scaled * noisy, _double(arrays[f"{case}/x_t"]), rtol=share, atol=1e-5)


@pytest.mark.golden
def test_dikl_s_schedule_equals_the_recordings(recorded):
    arrays, own = recorded.load(_SCHEDULES), constants(recorded, _SCHEDULES)
    betas = linear_betas(own["dikl_T"], *own["dikl"])
    torch.testing.assert_close(_double(betas), _double(arrays["dikl/betas"]), rtol=1e-6, atol=0)
    # Their loss of the score -slope x, from our levels.
    sigma = sigma_of(betas)[1:][torch.from_numpy(arrays["dikl/t"])][:, None]
    x, eps = (_double(arrays[f"dikl/{name}"]) for name in ("x", "eps"))
    kept = 1 / (1 + sigma.square()).sqrt()
    noisy = kept * (x + sigma * eps)
    loss = (eps - sigma * kept * own["slope"] * noisy).square().sum(dim=1).mean()
    assert float(loss) == pytest.approx(float(arrays["dikl/dsm_loss"]), rel=1e-5)


def _rows(count=4000):
    return CountedRows(seed=0, phase="any", rows=range(count), device=torch.device("cpu"))


def test_levels_have_their_laws():
    sid = noise_levels("sid", _rows())
    assert sid.dtype == torch.float32 and 0.002 <= float(sid.min()) < 0.003 and 23 < float(sid.max()) <= 24.5
    grid = noise_levels("dmd2", _rows())
    assert 0.002 < float(grid.min()) < 0.004 and 70 < float(grid.max()) < 80
    assert float(sid.median()) == pytest.approx(1.0, rel=0.2) and float(grid.median()) == pytest.approx(2.5, rel=0.1)
    for progress, most in ((0.0, 10), (1.0, 1000)):
        levels = noise_levels("diffusion_gan", _rows(), progress=progress)
        top = 0.05 * float(sigma_of(linear_betas(most, 1e-4, 0.02))[-1])
        assert float((levels == 0.002).float().mean()) == pytest.approx(0.5, abs=0.03) or progress == 0
        assert float(levels.max()) == pytest.approx(max(top, 0.002), rel=0.02)
        uniform = noise_levels("diffusion_gan_uniform", _rows(), progress=progress)
        assert float(uniform.double().mean()) < float(levels.double().mean())
        cosine = noise_levels("diffusion_gan_cosine", _rows(), progress=progress)
        assert float(cosine.max()) == pytest.approx(0.05 * float(sigma_of(cosine_betas(most))[-1]), rel=0.02)
    dikl = noise_levels("dikl", _rows())
    assert len(dikl.unique()) == 29 and torch.isfinite(dikl).all()


def test_the_progress_follows_the_signs_and_stays_a_share():
    assert progressed(0.0, mean=0.9, images=1_000) == pytest.approx(0.01)
    assert progressed(0.5, mean=0.1, images=1_000) == pytest.approx(0.49)
    assert progressed(0.0, mean=0.1, images=1_000) == 0.0 and progressed(1.0, mean=0.9, images=1_000) == 1.0
    assert progressed(0.5, mean=0.6, images=1_000) == 0.5


# Properties.


@pytest.mark.parametrize("name", DIVERGENCES)
def test_the_derivative_of_phi_is_minus_h_and_f_fits_h(name):
    divergence = DIVERGENCES[name]
    log_ratios = torch.linspace(-6, 6, 49, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(divergence.phi(log_ratios).sum(), log_ratios)
    ratios = log_ratios.detach().exp().requires_grad_()
    torch.testing.assert_close(slope, -divergence.h(ratios).detach())
    (first,) = torch.autograd.grad(divergence.f(ratios).sum(), ratios, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), ratios)
    h = divergence.h(ratios).detach()
    torch.testing.assert_close(ratios.detach().square() * second, h.expand_as(second), rtol=1e-6, atol=1e-9)
    assert float(divergence.f(torch.ones(()))) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_the_loss_is_phi_and_its_gradient_minus_h_also_beyond_the_clip(name):
    divergence = DIVERGENCES[name]
    log_ratios = torch.tensor([-30.0, -10.0, -1.0, 0.0, 2.0, 30.0], dtype=torch.float64, requires_grad=True)
    found = surrogate(divergence, log_ratios, clip=10.0)
    held = log_ratios.detach().clamp(-10, 10)
    torch.testing.assert_close(found.detach(), divergence.phi(held))
    (slope,) = torch.autograd.grad(found.sum(), log_ratios)
    torch.testing.assert_close(slope, -divergence.h(held.exp()))


def test_a_minimax_game_is_the_jensen_shannon_divergence():
    log_ratios = torch.linspace(-4, 4, 9, requires_grad=True)
    (ours,) = torch.autograd.grad(surrogate(DIVERGENCES["jensen_shannon"], log_ratios, clip=10.0).sum(), log_ratios)
    (theirs,) = torch.autograd.grad(nn.functional.softplus(log_ratios).sum(), log_ratios)
    torch.testing.assert_close(ours, -theirs)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_nothing_moves_a_generator_whose_density_is_that_of_the_data(name):
    """The log ratio is 0 everywhere then, whatever the weights of a network that says so."""
    objective = DensityRatio(divergence=name)
    generator = Affine(0.2, 0.8, objective.sigma)
    own = {"data": [(1.0, 0.2, 0.8)], "m": 0.2, "s": 0.8}

    def exact(x, sigma, condition):
        flat = x.flatten()
        return torch.stack([_log_ratio(each, own, float(s)) for each, s in zip(flat, sigma, strict=True)])

    batch = Batch(images=torch.zeros(8, 1, 1, 1), condition=None, random=_rows(8), images_seen=0)
    objective.generator_loss({"generator": generator, "ratio": exact}, batch).value.backward()
    assert abs(float(generator.m.grad)) < 1e-6 and abs(float(generator.s.grad)) < 1e-6


class Mlp(nn.Module):
    """Three hidden layers of points [B, D, 1, 1] and their noise level, scaled as by EDM."""

    def __init__(self, outputs, width=48):
        super().__init__()
        sizes = [(3, width), (width, width), (width, width)]
        layers = [layer for pair in sizes for layer in (nn.Linear(*pair), nn.SiLU())]
        self.inner, self.last = nn.Sequential(*layers), nn.Linear(width, outputs)

    def forward(self, x, sigma, condition=None):
        scale = 1 / (sigma.square() + 0.5).sqrt()
        given = torch.cat([scale[:, None] * x.flatten(1), (sigma.log() / 4)[:, None]], dim=1)
        return self.last(self.inner(given))


class Points(Mlp):
    """A generator of points."""

    def forward(self, x, sigma, condition=None):
        return super().forward(x, sigma)[:, :, None, None]


class LogRatio(Mlp):
    """A ratio network of points."""

    def forward(self, x, sigma, condition=None):
        return super().forward(x, sigma)[:, 0]


class Fast:
    """Random numbers of a whole batch, faster than one stream per image."""

    def __init__(self, rows, generator):
        self.rows, self.generator = rows, generator

    def normal(self, *shape):
        return torch.randn(self.rows, *shape, generator=self.generator)

    def uniform(self, *shape):
        return torch.rand(self.rows, *shape, generator=self.generator)


def _ring(rows, generator):
    angles = torch.randint(8, (rows,), generator=generator) * (math.pi / 4)
    centres = torch.stack([angles.cos(), angles.sin()], dim=1)
    return (centres + 0.05 * torch.randn(rows, 2, generator=generator))[:, :, None, None]


def _energy_distance(one, other):
    one, other = one.flatten(1), other.flatten(1)
    return float(2 * torch.cdist(one, other).mean() - torch.cdist(one, one).mean() - torch.cdist(other, other).mean())


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_a_ring_of_gaussians_trains_with_every_divergence(divergence):
    """Radius 1, deviation 0.05: all eight are found, and the energy distance falls to a fifth."""
    torch.manual_seed(0)
    rows, steps, random = 96, 180, torch.Generator().manual_seed(1)
    objective = DensityRatio(divergence=divergence, weighting="uniform")
    networks = {"generator": Points(2), "ratio": LogRatio(1)}
    optimizers = {
        role: torch.optim.Adam(each.parameters(), lr=3e-3, betas=(0.0, 0.99)) for role, each in networks.items()
    }
    phases = objective.phases()

    def batch(images):
        return Batch(images=images, condition=None, random=Fast(len(images), random), images_seen=0)

    def samples():
        with torch.no_grad():
            return objective.generate(networks["generator"], batch(_ring(1_000, random)))

    data = _ring(1_000, random)
    before = _energy_distance(samples(), data)
    for _ in range(steps):
        images = _ring(rows, random)
        for phase in phases:
            loss = phase.loss(networks, batch(images))
            optimizers[phase.trains].zero_grad()
            loss.value.backward(inputs=list(networks[phase.trains].parameters()))
            optimizers[phase.trains].step()
    found = samples()
    assert _energy_distance(found, data) < before / 5
    centres = torch.stack([torch.tensor([math.cos(a), math.sin(a)]) for a in torch.arange(8) * (math.pi / 4)])
    distances, nearest = torch.cdist(found.flatten(1), centres).min(dim=1)
    assert len(nearest.unique()) == 8
    assert float((distances < 0.2).float().mean()) > 0.15  # a tenth of a disk


# What the options do.


def _batch(rows=range(8), phase="ratio", **changes):
    images = torch.rand(8, 2, 1, 1, generator=torch.Generator().manual_seed(2))[rows.start : rows.stop]
    random = CountedRows(seed=1, phase=phase, rows=rows, device=torch.device("cpu"))
    return Batch(images=images, condition=None, random=random, images_seen=0, **changes)


def _networks():
    torch.manual_seed(0)
    return {"generator": Points(2, width=8), "ratio": LogRatio(1, width=8)}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"normalise": 0.5},
        {"draws": "same_level"},
        {"noise": "dmd2", "r1_gamma": 100.0},
        {"noise": "diffusion_gan", "r1": "exact", "r1_gamma": 0.1},
    ],
)
def test_two_halves_of_a_batch_average_to_the_whole(options):
    objective = DensityRatio(divergence="forward_kl", **options)
    for phase in objective.phases():
        losses = [phase.loss(_networks(), _batch(rows)) for rows in (range(8), range(4), range(4, 8))]
        whole, *halves = losses
        torch.testing.assert_close(sum(each.value for each in halves) / 2, whole.value)
        for name, value in whole.observed.items():
            torch.testing.assert_close(sum(each.observed[name] for each in halves) / 2, value)


def test_phases_are_those_of_the_options():
    def phases(**options):
        return [
            (each.name, each.trains, each.every) for each in DensityRatio(divergence="reverse_kl", **options).phases()
        ]

    assert phases() == [("generator", "generator", 1), ("ratio", "ratio", 1)]
    assert phases(ratio_steps=5) == [("generator", "generator", 5), ("ratio", "ratio", 1)]
    assert phases(r1_gamma=100.0) == phases()
    assert phases(r1_gamma=1.0, r1="exact")[2] == ("r1", "ratio", 16)
    assert phases(r1_gamma=1.0, r1="exact", r1_every=4)[2] == ("r1", "ratio", 4)
    with pytest.raises(ValueError, match="r1_every"):
        DensityRatio(divergence="reverse_kl", r1_every=4)


def test_an_approximate_penalty_is_the_exact_one_to_first_order():
    """E (l(x) - l(x + a n))^2 = a^2 |grad l|^2 for small steps: gamma / 50 of an exact one has the same weight."""
    rows = 2_000
    images = torch.rand(rows, 2, 1, 1, generator=torch.Generator().manual_seed(2))
    ratio = LogRatio(1, width=16)

    def of(method, **options):
        random = CountedRows(seed=1, phase="r1", rows=range(rows), device=torch.device("cpu"))
        batch = Batch(images=images, condition=None, random=random, images_seen=0)
        objective = DensityRatio(divergence="reverse_kl", r1_gamma=1.0, **options)
        return float(getattr(objective, method)({"generator": Points(2), "ratio": ratio}, batch).observed["r1_penalty"])

    exact = of("r1_loss", r1="exact")
    assert of("ratio_loss", r1="approximate") == pytest.approx(0.1**2 * exact, rel=0.15)


def test_draws_are_shared_as_configured():
    seen = {}

    def ratio(x, sigma, condition):
        seen["x"], seen["sigma"] = x.chunk(2), sigma.chunk(2)
        return x.flatten(1).sum(dim=1)

    networks = {"generator": lambda x, sigma, condition: torch.zeros_like(x), "ratio": ratio}
    for draws in ("independent", "same_level", "same_level_and_noise"):
        batch = _batch()
        DensityRatio(divergence="reverse_kl", draws=draws).ratio_loss(networks, batch)
        (data, fake), (one, other) = seen["x"], seen["sigma"]
        assert torch.equal(one, other) == (draws != "independent")
        noise = [
            (each - start).flatten(1) / s[:, None] for each, start, s in ((data, batch.images, one), (fake, 0, other))
        ]
        assert torch.allclose(*noise, atol=1e-3) == (draws == "same_level_and_noise")


def test_normalised_weights_follow_the_averages_of_the_steps_before():
    objective = DensityRatio(divergence="forward_kl", normalise=0.5)
    generator, _ = objective.phases()
    (control,) = generator.controls
    value = control.start
    assert set(value) == {1.0} and len(value) == 11
    networks = {"generator": lambda x, sigma, condition: x, "ratio": lambda x, sigma, c: 0 * sigma + math.log(3)}
    batch = _batch(controls={control.name: value})
    observed = generator.loss(networks, batch).observed[control.observes]
    value = control.rule(value, mean=observed.double().tolist(), images=8)
    # Levels up to 24.4 are in the first bins of ten up to 80; the ratio is 3, and h of the first step, too.
    assert value[0] == pytest.approx(2.0) and value[-2] == 1.0 and value[-1] == pytest.approx(2.0, rel=1e-5)
    for _ in range(40):
        batch = _batch(controls={control.name: value})
        value = control.rule(value, mean=generator.loss(networks, batch).observed[control.observes].tolist(), images=8)
    assert value[0] == pytest.approx(3.0) and value[-1] == pytest.approx(1.0, rel=1e-3)
