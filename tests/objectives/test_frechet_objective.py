"""Objective frechet: recordings of the reference, the closed form of its gradient, covariances without full rank."""

from __future__ import annotations

import pytest
import torch

from onestep.objectives.frechet import (
    Frechet,
    ReferenceMoments,
    begun_average,
    begun_ring,
    frechet_distance,
    symmetric_root,
    unbiased_moments,
)
from recorded_studies import assert_close, constants, tensors, tolerance

_FILE = "fd_loss.npz"
# Of the reference's modes: the population, the words on the tolerance, and the names of its state in the recordings.
_MODES = {
    "ema": ("average", r"ema, online: rel ([0-9.e-]+)", {"mean": "mean", "second_moment": "second_moment"}),
    "online": ("ring", r"ema, online: rel ([0-9.e-]+)", {k: k for k in ("features", "pointer", "sum", "outer")}),
    "snapshot": ("ring", r"snapshot, batch: rel ([0-9.e-]+)", {k: k for k in ("features", "pointer")}),
    "batch": ("batch", r"snapshot, batch: rel ([0-9.e-]+)", {}),
}


@pytest.fixture(scope="module")
def recorded(golden):
    folder = golden.folder / "objectives"
    if not (folder / "manifest.json").exists():
        pytest.skip(f"{folder}: no recordings of objectives")
    return type(golden)(folder)


@pytest.fixture(scope="module")
def arrays(recorded):
    return recorded.load(_FILE)


def state_of(arrays, rep, population):
    """Return the state before the first recorded call."""
    known = tensors(arrays, f"{rep}/")
    begun = {"average": begun_average, "ring": begun_ring, "batch": lambda _: {}}[population](known["fill"])
    reference = {"mean": known["mu_ref"], "covariance": known["sigma_ref"]}
    state = {f"{rep}/reference_{key}": value for key, value in reference.items()}
    return state | {f"{rep}/root": symmetric_root(known["sigma_ref"])} | {f"{rep}/{k}": v for k, v in begun.items()}


def called(objective, features, state):
    """Return a coupled loss, and its gradient by network."""
    leaves = {name: each.clone().requires_grad_() for name, each in features.items()}
    found = objective.loss(leaves, state)
    return found, dict(zip(leaves, torch.autograd.grad(found.value, list(leaves.values())), strict=True))


@pytest.mark.parametrize("root", ["eigvalsh", "eigvals"])
@pytest.mark.parametrize("mode", _MODES)
def test_it_follows_the_reference_over_recorded_calls(arrays, recorded, mode, root):
    population, pattern, names = _MODES[mode]
    known = constants(recorded, _FILE)
    share = tolerance(recorded, _FILE, pattern)
    if root == "eigvals":  # another way to the same root
        share = max(share, tolerance(recorded, _FILE, r"agree to ([0-9.e-]+)"))
    for rep in (f"rep{number}" for number in range(len(known["dims"]))):
        objective = Frechet(
            features={rep: 1.0},
            population=population,
            decay=known["beta"],
            warm_start=known["size"],
            eps=known["eps"],
            gain=1.0,
        )
        state = state_of(arrays, rep, population)
        assert_close(state[f"{rep}/root"], arrays[f"{rep}/sigma_ref_sqrt"], share=1e-9, what="root")
        for call in range(known["calls"]):
            wanted = tensors(arrays, f"{rep}/{mode}/{root}/{call}/")
            rows = torch.from_numpy(arrays[f"{rep}/x/{call}"])
            found, gradient = called(objective, {rep: rows}, state)
            assert_close(found.observed[f"frechet_{rep}"], wanted["fd"], share=share, what="fd")
            assert_close(found.value, wanted["loss"], share=share, what="loss")
            assert_close(gradient[rep], wanted["grad"], share=share, what="grad")
            if "mu" in wanted:
                own = {key.partition("/")[2]: value for key, value in state.items()}
                (mean, covariance), _ = objective.moments(rows, own)
                assert_close(mean, wanted["mu"], share=share, what="mean")
                assert_close(covariance, wanted["sigma"], share=share, what="covariance")
            state = {**state, **{key: value.detach() for key, value in found.state.items()}}
        for own, name in names.items():
            if (key := f"{rep}/{mode}/{root}/state/{name}") in arrays:
                assert_close(
                    state[f"{rep}/{own}"], arrays[key].reshape(state[f"{rep}/{own}"].shape), share=share, what=key
                )


def test_several_networks_add_their_weighted_losses(arrays, recorded):
    known = constants(recorded, _FILE)
    weights = {f"rep{number}": weight for number, weight in enumerate(known["weights"])}
    objective = Frechet(features=weights, decay=known["beta"], eps=known["eps"], gain=1.0)
    state = {key: each for rep in weights for key, each in state_of(arrays, rep, "average").items()}
    found, _ = called(objective, {rep: torch.from_numpy(arrays[f"{rep}/x/0"]) for rep in weights}, state)
    share = tolerance(recorded, _FILE, r"ema, online: rel ([0-9.e-]+)")
    assert_close(found.value, arrays["weighted/0/loss"], share=share, what="loss")


def test_the_gradient_of_one_rank_is_the_recorded_one(arrays, recorded):
    """That of two is half of it in the reference, and not here: see tests/training/test_coupled.py."""
    known = constants(recorded, _FILE)
    objective = Frechet(features={"rep0": 1.0}, decay=known["beta"], eps=known["eps"], gain=1.0)
    theta = torch.from_numpy(arrays["ranks/theta"]).requires_grad_()
    features = torch.tanh(torch.from_numpy(arrays["ranks/z"]) @ theta)
    found = objective.loss({"rep0": features}, state_of(arrays, "rep0", "average"))
    (gradient,) = torch.autograd.grad(found.value, theta)
    share = tolerance(recorded, _FILE, r"ema, online: rel ([0-9.e-]+)")
    assert_close(gradient, arrays["ranks/1/grad"], share=share, what="grad")
    assert_close(gradient / 2, arrays["ranks/2/grad"], share=share, what="half of it")
    for ranks in (1, 2):  # of which each has the same distance and state
        assert_close(found.observed["frechet_rep0"], arrays[f"ranks/{ranks}/fd"], share=share, what="fd")
        assert_close(found.state["rep0/mean"], arrays[f"ranks/{ranks}/state/mean"], share=share, what="mean")


def _random(rows, width, *, seed, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(width, width, generator=generator)
    return torch.randn(rows, width, generator=generator) @ mixed + shift


def _state(population, width=5, *, size=40, seed=1):
    real, begun = _random(200, width, seed=0), _random(size, width, seed=seed, shift=0.3)
    mean, covariance = unbiased_moments(real.double())
    own = {"reference_mean": mean, "reference_covariance": covariance, "root": symmetric_root(covariance)}
    own |= {"average": begun_average, "ring": begun_ring, "batch": lambda _: {}}[population](begun)
    return {f"net/{key}": value for key, value in own.items()}


@pytest.mark.parametrize("population", ["average", "ring"])
def test_its_gradient_is_the_map_between_the_two_gaussians(population):
    """2 (1 - b) / N [(f - m_r) - T (f - m)], with the optimal map T.

    Of a ring 2 / Q (m - m_r) + 2 / (Q - 1) (I - T)(f - m).
    """
    state, rows, decay = _state(population), _random(16, 5, seed=2, shift=0.1), 0.7
    objective = Frechet(features={"net": 1.0}, population=population, decay=decay, warm_start=40, eps=0.0, gain=1.0)
    found, gradient = called(objective, {"net": rows}, state)
    own = {key.partition("/")[2]: value for key, value in state.items()}
    (mean, covariance), _ = objective.moments(rows, own)
    root, wanted_mean = own["root"], own["reference_mean"]
    eigenvalues, vectors = torch.linalg.eigh(root @ covariance @ root)
    transport = root @ (vectors * eigenvalues**-0.5) @ vectors.T @ root
    apart = rows.double() - mean
    if population == "average":
        closed = 2 * (1 - decay) / 16 * ((rows.double() - wanted_mean) - apart @ transport)
    else:
        closed = 2 / 40 * (mean - wanted_mean) + 2 / 39 * (apart - apart @ transport)
    assert_close(gradient["net"], closed / found.observed["frechet_net"], share=1e-6, what="closed form")


def test_the_distance_and_its_gradient_are_zero_where_the_moments_agree():
    mean, covariance = unbiased_moments(_random(200, 5, seed=0).double())
    reference = ReferenceMoments(mean, covariance, symmetric_root(covariance))
    leaves = [mean.clone().requires_grad_(), covariance.clone().requires_grad_()]
    distance = frechet_distance(*leaves, reference)
    assert abs(float(distance.detach())) <= 1e-10 * float(covariance.trace())
    gradients = torch.autograd.grad(distance, leaves)
    assert max(float(each.abs().max()) for each in gradients) <= 1e-9


def test_few_images_have_a_finite_gradient_of_ordinary_size():
    """Of a covariance without full rank, whose root has no derivative."""
    rows, state = _random(3, 5, seed=3), _state("batch")
    found, gradient = called(Frechet(features={"net": 1.0}, population="batch", eps=0.0), {"net": rows}, state)
    assert torch.isfinite(found.value) and float(gradient["net"].abs().max()) < 10


def test_without_memory_an_average_is_the_batch_but_for_its_divisor():
    rows, whole = _random(32, 5, seed=4), Frechet(features={"net": 1.0}, decay=0.0)
    (mean, covariance), _ = whole.moments(rows, {"mean": torch.zeros(5), "second_moment": torch.zeros(5, 5)})
    wanted_mean, unbiased = unbiased_moments(rows.double())
    assert torch.allclose(mean, wanted_mean) and torch.allclose(covariance * 32 / 31, unbiased)


@pytest.mark.parametrize(
    ("options", "images", "gain"),
    [
        ({"decay": 0.75}, 8, 4.0),
        ({"population": "ring", "warm_start": 40}, 8, 5.0),
        ({"population": "batch"}, 8, 1.0),
        ({"decay": 0.75, "gain": 1.0}, 8, 1.0),
    ],
)
def test_the_gain_undoes_the_share_of_a_step_in_the_population(options, images, gain):
    assert Frechet(features={"net": 1.0}, **options).gain_of(images) == pytest.approx(gain)


def test_no_features_are_refused():
    with pytest.raises(ValueError, match="features"):
        Frechet(features={})
