"""Objective kernel: recordings of the references, exact identities, its controller, what is refused."""

from __future__ import annotations

import pytest
import torch

from onestep.coupling import Start
from onestep.objectives._kernels import Kernel, balanced, centroids, landmarks_of, mean_of_pairs, two_sample
from onestep.objectives.frechet import ReferenceMoments, frechet_distance, unbiased_moments
from onestep.objectives.kernel import KernelLoss
from recorded_studies import assert_close, constants, tensors, tolerance

_FILE = "mmd.npz"


@pytest.fixture(scope="module")
def recorded(golden):
    folder = golden.folder / "objectives"
    if not (folder / "manifest.json").exists():
        pytest.skip(f"{folder}: no recordings of objectives")
    return type(golden)(folder)


@pytest.fixture(scope="module")
def arrays(recorded):
    return tensors(recorded.load(_FILE))


@pytest.fixture(scope="module")
def known(recorded):
    return constants(recorded, _FILE)


@pytest.fixture(scope="module")
def close(recorded):
    """Compare losses and gradients with the recorded ones."""
    losses, zero, gradients = (
        tolerance(recorded, _FILE, pattern)
        for pattern in (r"losses rel ([0-9.e-]+)", r"absolute ([0-9.e-]+)", r"grads rel ([0-9.e-]+)")
    )

    def compare(value, gradient, wanted):
        assert float(value.detach()) == pytest.approx(float(wanted["loss"]), rel=losses, abs=zero)
        if gradient is not None:
            assert_close(gradient, wanted["grad"], share=gradients, what="grad")

    return compare


def _below(arrays, prefix):
    return {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}


def objective(**options):
    return KernelLoss(features={"net": 1.0}, **options)


def called(own, generated, state, *, real=None):
    """Return d and its gradient."""
    leaf = generated.clone().requires_grad_()
    found = own.discrepancy(leaf, state, real=real)
    (gradient,) = torch.autograd.grad(found, leaf)
    return found, gradient


def _landmarks(arrays):
    names = {"rows": "landmarks", "weights": "alpha", "within": "k_rr"}
    return {own: arrays[f"nystrom/{name}"] for own, name in names.items()} | {"unit": arrays["sigma"].reshape(1)}


def test_the_unit_is_the_recorded_median(arrays):
    found = objective(points=4).reference_of(arrays["pool"])
    assert float(found["unit"]) == pytest.approx(float(arrays["sigma"]), rel=1e-5)


def test_landmarks_have_the_recorded_weights(arrays, known, recorded):
    kernel, chosen = Kernel(name="gaussian", scales=(1.0,), unit=float(arrays["sigma"])), arrays["nystrom/landmarks"]
    found = landmarks_of(kernel, arrays["pool"], chosen=chosen, pairs=known["krr"])
    share = tolerance(recorded, _FILE, r"K alpha instead, rel ([0-9.e-]+)")
    within = kernel(chosen, chosen)
    weights = arrays["nystrom/alpha"].double()
    assert_close(within @ found.weights.double(), within @ weights, share=share, what="K alpha")
    assert_close(within @ found.weights.double(), arrays["nystrom/reference_mean"], share=share, what="mean embedding")
    assert_close(found.within, arrays["nystrom/k_rr"], share=1e-5, what="k_rr")
    assert_close(mean_of_pairs(kernel, arrays["generated"]), arrays["self_kernel_mean"], share=1e-5, what="mean kernel")


def test_the_distance_to_landmarks_is_the_recorded_one(arrays, close):
    found = called(objective(), arrays["generated"], _landmarks(arrays))
    close(*found, _below(arrays, "mmd_nystrom/"))


def test_the_normalised_loss_is_the_recorded_one(arrays, close):
    leaf = arrays["generated"].clone().requires_grad_()
    state = {f"net/{key}": value for key, value in _landmarks(arrays).items()}
    found = objective().loss({"net": leaf}, state)
    close(found.value, *torch.autograd.grad(found.value, leaf), _below(arrays, "self_normalised/"))


def test_the_whole_batch_has_the_recorded_gradient_of_its_parts(arrays, known, recorded):
    theta = arrays["cached/theta"].clone().requires_grad_()
    parts = [arrays[f"cached/z/{number}"] for number in range(len(known["chunks"]))]
    features = torch.tanh(torch.cat(parts) @ theta) * known["amp"]
    state = {f"net/{key}": value for key, value in _landmarks(arrays).items()}
    found = objective().loss({"net": features}, state)
    (gradient,) = torch.autograd.grad(found.value, theta)
    share = tolerance(recorded, _FILE, r"grads rel ([0-9.e-]+)")
    assert_close(gradient / len(parts), arrays["cached/grad"], share=share, what="grad")
    assert float((gradient / len(parts) - arrays["cached/naive_grad"]).abs().max()) > 10 * share


@pytest.mark.parametrize("against", ["batch", "waves", "slices"])
def test_other_comparisons_are_the_recorded_ones(arrays, known, close, against):
    name = {"batch": "mmd_exact", "waves": "mmd_rff", "slices": "sliced_wasserstein"}[against]
    state = {"unit": arrays["sigma"].reshape(1)}
    state |= {"frequencies": arrays["rff/W"], "phases": arrays["rff/b"], "mean": arrays["rff/mu"]}
    state |= {"directions": arrays["sliced_wasserstein/directions"]}
    found = called(objective(against=against, points=known["D"]), arrays["generated"], state, real=arrays["real"])
    wanted = _below(arrays, f"{name}/")
    if against == "batch":  # there with the constant of the pool in the place of the mean kernel of `real`
        kernel = Kernel(name="gaussian", scales=(1.0,), unit=float(arrays["sigma"]))
        own_constant = mean_of_pairs(kernel, arrays["real"])
        wanted["loss"] = wanted["loss"] - arrays["nystrom/k_rr"] + own_constant
    close(*found, wanted)


@pytest.mark.parametrize("bias", ["biased", "unbiased"])
@pytest.mark.parametrize("name", ["rbf_mixture", "rq_mixture", "distance"])
def test_classic_kernels_are_the_recorded_ones(arrays, known, close, name, bias):
    kernel = {"rbf_mixture": "gaussian", "rq_mixture": "rational_quadratic", "distance": "distance"}[name]
    scales = tuple(known["alphas"] if name == "rq_mixture" else known["sigmas"])
    diagonal = bias == "biased"
    own = objective(kernel=kernel, scales=scales, unit="one", against="batch", diagonal=diagonal, normalise=False)
    state = {"unit": torch.ones(1, dtype=torch.float64)}
    found = called(own, arrays["generated"], state, real=arrays["real"])
    close(*found, _below(arrays, f"{name}/{bias}/"))


@pytest.mark.parametrize(("name", "power", "offset"), [("linear", 1.0, 0.0), ("polynomial", 2.0, 2.0)])
def test_neighbours_are_the_recorded_ones(arrays, close, name, power, offset):
    own = objective(
        kernel="polynomial", scales=(power,), offset=offset, unit="one", against="neighbours", normalise=False
    )
    state = {"unit": torch.ones(1, dtype=torch.float64)}
    found = called(own, arrays["generated"], state, real=arrays["real"])
    close(*found, _below(arrays, f"linear_time/{name}/"))


def test_the_product_beside_rational_quadratic_kernels_is_the_recorded_one(arrays, known, close):
    """Biased; the reference's unbiased one leaves a part of the product's diagonal in (docs of the recordings)."""
    own = objective(
        kernel="rational_quadratic", scales=tuple(known["alphas"]), unit="one", dot=known["dot"], against="batch"
    )
    state = {"unit": torch.ones(1, dtype=torch.float64)}
    found = called(own, arrays["generated"], state, real=arrays["real"])
    close(*found, _below(arrays, "rq_dot_mixture/biased/"))


def test_the_unbiased_product_is_the_recorded_one_but_for_its_diagonal(arrays, known, close):
    """The reference subtracts the diagonal of the rational quadratic kernels alone, which is constant."""
    scales = tuple(known["alphas"])
    kernel = Kernel(name="rational_quadratic", scales=scales, dot=known["dot"])
    generated = arrays["generated"].clone().requires_grad_()
    lengths = [each.double().square().sum() for each in (generated, arrays["real"])]
    left = known["dot"] * sum(lengths) / (len(generated) * (len(generated) - 1))
    found = two_sample(kernel, generated, arrays["real"], diagonal=False) + left
    (gradient,) = torch.autograd.grad(found, generated)
    close(found, gradient, _below(arrays, "rq_dot_mixture/unbiased/"))


def test_the_frechet_distance_of_a_batch_is_the_recorded_one(arrays, close):
    """There 1e-6 is added to the diagonal of the covariance (RDM), and not in the objective `frechet`."""
    generated = arrays["generated"].clone().requires_grad_()
    mean, covariance = unbiased_moments(generated.double())
    root = arrays["frechet/half"].double()
    reference = ReferenceMoments(arrays["frechet/mu"].double(), root @ root.T, root)
    added = 1e-6 * torch.eye(len(mean), dtype=torch.float64)
    found = frechet_distance(mean, covariance + added, reference)
    (gradient,) = torch.autograd.grad(found, generated)
    close(found, gradient, _below(arrays, "frechet_batch/"))


def test_the_controller_has_the_recorded_weights(arrays, known, recorded):
    own = known["controllers"]["irdm"]
    share = tolerance(recorded, _FILE, r"controller rel ([0-9.e-]+)")
    names = [f"n{place}" for place in range(len(known["floors"]))]
    objective = KernelLoss(features=dict.fromkeys(names, 1.0), held_out=10)
    assert own["total_lambda"] == len(names)
    state = {f"{n}/floor": torch.tensor([f], dtype=torch.float64) for n, f in zip(names, known["floors"], strict=True)}
    for key, start in (("score", 0.0), ("weight", 1.0), ("begun", 0.0)):
        state |= {f"{name}/{key}": torch.tensor([start], dtype=torch.float64) for name in names}
    for row, scores in enumerate(known["scores"]):
        found = {n: torch.tensor(score, dtype=torch.float64) for n, score in zip(names, scores, strict=True)}
        state |= objective.controlled(found, state)
        weights = torch.cat([state[f"{name}/weight"] for name in names])
        assert_close(weights, arrays["controller/irdm/weights"][row], share=share, what="weights")
    ends = torch.cat([state[f"{name}/score"] for name in names])
    assert_close(ends, arrays["controller/irdm/ema"], share=share, what="scores")


def test_networks_below_their_floors_get_no_weight():
    floors = torch.tensor([0.2, 0.3])
    assert torch.equal(balanced(torch.tensor([0.1, 0.3]), floors, total=2.0), torch.zeros(2))
    one = balanced(torch.tensor([0.1, 0.4]), floors, total=2.0)
    assert float(one[0]) == 0 and float(one[1]) == pytest.approx(2.0)


def _rows(count, width=4, *, seed=0, shift=0.0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) + shift


def test_a_satisfied_step_has_no_gradient():
    own, rows = objective(points=8, held_out=10), _rows(20)
    state = {f"net/{key}": value for key, value in own.reference_of(_rows(60, seed=1)).items()}
    state |= {"net/weight": torch.zeros(1), "net/floor": torch.ones(1), "net/score": torch.zeros(1)}
    leaf = rows.requires_grad_()
    found = own.loss({"net": leaf}, state | {"net/begun": torch.ones(1)})
    assert not torch.autograd.grad(found.value, leaf)[0].any() and float(found.state["net/weight"]) == 0


def test_every_real_image_as_a_landmark_has_no_distance_to_itself():
    rows = _rows(50)
    kernel = Kernel(name="gaussian", scales=(1.0,), unit=1.0)
    found = landmarks_of(kernel, rows, chosen=rows, pairs=50).discrepancy(kernel, rows, diagonal=True)
    assert abs(float(found)) <= 1e-5
    far = landmarks_of(kernel, rows, chosen=rows, pairs=50).discrepancy(kernel, _rows(50, shift=2.0), diagonal=True)
    assert float(far) > 0.1


@pytest.mark.parametrize("against", ["batch", "slices"])
def test_real_images_have_no_distance_to_themselves(against):
    own, rows = objective(against=against, points=16), _rows(30)
    assert abs(float(own.discrepancy(rows, own.reference_of(rows), real=rows))) <= 1e-9


def test_waves_are_near_the_kernel_that_they_stand_for():
    generated, real = _rows(200, shift=0.5), _rows(200, seed=1)
    found = {}
    for against in ("waves", "batch"):
        own = objective(against=against, points=20_000, scales=(0.5, 1.0))
        found[against] = float(own.discrepancy(generated, own.reference_of(real), real=real))
    assert found["waves"] == pytest.approx(found["batch"], rel=0.1)


@pytest.mark.parametrize("kernel", ["gaussian", "polynomial", "distance"])
def test_neighbours_have_the_mean_of_all_pairs(kernel):
    """Over many draws the linear estimate and the unbiased one of all pairs agree."""
    own = {each: objective(kernel=kernel, against=each, diagonal=each != "batch", normalise=False, unit="one")
           for each in ("batch", "neighbours")}  # fmt: skip
    state, found = {"unit": torch.ones(1, dtype=torch.float64)}, {name: [] for name in own}
    for seed in range(60):
        generated, real = _rows(100, seed=2 * seed, shift=0.7), _rows(100, seed=2 * seed + 1)
        for name, each in own.items():
            found[name].append(float(each.discrepancy(generated, state, real=real)))
    deviation = torch.tensor(found["neighbours"]).std() / 60**0.5
    wanted, linear = (torch.tensor(found[name]).mean() for name in ("batch", "neighbours"))
    assert abs(linear - wanted) < 4 * deviation < 4 * wanted


def test_centroids_are_the_means_of_separate_groups():
    groups = torch.cat([_rows(40, seed=place) * 0.01 + 10 * place for place in range(3)])
    found = centroids(groups, count=3, steps=20, seed=3)
    nearest = (groups.mean(dim=1).reshape(3, 40).mean(dim=1)[:, None] - found.mean(dim=1)).abs().min(dim=1).values
    assert len(found) == 3 and float(nearest.max()) < 7
    assert torch.equal(found, centroids(groups, count=3, steps=20, seed=3))


def test_the_reference_leaves_held_out_images_aside_and_makes_floors_of_them():
    rows, asked = _rows(100), []

    def collect(function, *, images, stream):
        asked.append(images)
        return {"net": rows[:images]}

    own = objective(points=8, reference=1_000, held_out=30)
    state = own.start(Start(images=100, batch=16, collect=collect))
    assert asked == [100]
    alone = own.reference_of(rows[:70])
    assert all(torch.equal(state[f"net/{key}"], value) for key, value in alone.items())
    assert float(state["net/floor"]) > 0 and float(state["net/weight"]) == 1


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"diagonal": False}, "normalise"),
        ({"dot": 0.1}, "dot"),
        ({"offset": 0.1}, "offset"),
        ({"against": "neighbours"}, "normalise"),
        ({"against": "waves", "kernel": "rational_quadratic"}, "waves"),
    ],
)
def test_what_contradicts_itself_is_refused(options, named):
    with pytest.raises(ValueError, match=named):
        objective(**options)
