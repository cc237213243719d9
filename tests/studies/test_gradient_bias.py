"""Closed form of blurred points, the networks that are fitted to them, their errors, and each verdict of the rule."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from onestep.figures import svg
from onestep.studies import _ratio_and_scores
from onestep.studies._smoothed_points import SmoothedPoints, class_log_weights
from onestep.studies.gradient_bias import GradientBias, errors_of, parameter_gradient, verdict
from recorded_studies import constants, studies_of, tolerance

NAME = "smoothed_points.npz"
FIT = {"layers": 2, "width": 32, "learning_rate": 0.01, "batch": 256, "levels": (0.05, 2.0), "held_out": 1_024}
SMALL = {"layers": 2, "width": 16, "batch": 128, "steps": 30, "held_out": 1_024, "levels": 4}
CLASSES = (("plus", 1.0), ("minus", -1.0))


@pytest.mark.golden
def test_the_closed_form_is_that_of_the_recording(golden):
    recorded = studies_of(golden)
    arrays = {key: torch.from_numpy(value) for key, value in recorded.load(NAME).items()}
    limits = {"rtol": tolerance(recorded, NAME, r"rel (\S+)"), "atol": 1e-12}
    weights = class_log_weights(arrays["points"], contrast=2.0)
    points = SmoothedPoints(arrays["points"], weights)
    for found, name in ((weights[0], "plus"), (weights[1], "minus"), (points.marginal, "marginal")):
        np.testing.assert_allclose(found, arrays[f"log_weights_{name}"], **limits)
    x = arrays["x"]
    for level, (name, label) in itertools.product(constants(recorded, NAME)["sigma"], CLASSES):
        rows = x, torch.full((len(x),), label, dtype=x.dtype), torch.full((len(x),), level, dtype=x.dtype)
        given, either = points.scores(*rows)
        recording = f"sigma{level}/{name}"
        np.testing.assert_allclose(points.log_ratio(*rows), arrays[f"{recording}/log_ratio"], **limits)
        for difference in (points.score_difference(*rows), given - either):
            # A difference of two scores loses digits where it is far smaller than they are.
            near = {**limits, "atol": 1e-12 / level**2}
            np.testing.assert_allclose(difference, arrays[f"{recording}/score_difference"], **near)


def test_rows_are_those_of_the_classes_and_levels():
    points = GradientBias().points()
    rows = points.draw(40_000, levels=(0.05, 2.0), random=torch.Generator().manual_seed(0))
    assert rows.x.dtype == torch.float32 and rows.x.shape == (40_000, 2)
    assert rows.labels.mean().abs() < 0.03 and set(rows.labels.tolist()) == {1.0, -1.0}
    assert rows.sigma.min() >= 0.05 and rows.sigma.max() <= 2.0
    assert rows.sigma.log().mean() == pytest.approx((np.log(0.05) + np.log(2.0)) / 2, abs=0.03)
    share = torch.bincount(rows.index[rows.labels > 0], minlength=40) / (rows.labels > 0).sum()
    np.testing.assert_allclose(share, points.log_weights[0].exp(), atol=0.01)
    moved = points.points.float()[rows.index] + rows.sigma[:, None] * rows.noise
    torch.testing.assert_close(rows.x, moved)


def test_a_stack_is_the_networks_that_it_consists_of():
    stack = _ratio_and_scores.Stack(3, sizes=(4, 8, 8, 2), random=torch.Generator().manual_seed(0))
    x = torch.randn(3, 5, 4)
    for index, found in enumerate(stack(x)):
        hidden = x[index]
        for layer, (weight, bias) in enumerate(zip(stack.weights, stack.biases, strict=True)):
            hidden = hidden @ weight[index] + bias[index]
            hidden = torch.nn.functional.silu(hidden) if layer < 2 else hidden
        torch.testing.assert_close(found, hidden)
    (gradient,) = torch.autograd.grad(stack(x)[1].sum(), stack.weights[0])
    assert gradient[1].any() and not gradient[[0, 2]].any()


def test_exact_estimates_have_no_error_and_zero_has_all_of_it():
    points = GradientBias().points()
    rows = points.draw(2_000, levels=(0.05, 2.0), random=torch.Generator().manual_seed(0))
    at = type(rows)(**{key: each.double() if each.is_floating_point() else each for key, each in vars(rows).items()})
    given, either = points.scores(at.x, at.labels, at.sigma)
    exact = points.score_difference(at.x, at.labels, at.sigma)
    edges = GradientBias(levels=4).edges()
    perfect = _ratio_and_scores.Estimates(rows=at, ratio=exact, conditional=given, marginal=either)
    found = errors_of(points, perfect, edges=edges)
    assert all(np.max(value) < 1e-9 for name, value in found.items() if name != "exact.by_level")
    empty = _ratio_and_scores.Estimates(rows=at, ratio=0 * exact, conditional=given, marginal=given)
    found = errors_of(points, empty, edges=edges)
    for estimator, column in itertools.product(("ratio", "two_scores"), ("score_difference", "parameter_gradient")):
        assert found[f"{estimator}.{column}"] == pytest.approx(1.0)
    np.testing.assert_allclose(found["ratio.by_level"], found["exact.by_level"])
    # The size over all rows is that of the levels, weighted by their rows.
    counts, _ = np.histogram(at.sigma, edges)
    assert (found["exact.by_level"] ** 2 * counts).sum() / len(rows.x) == pytest.approx(1.0)


def test_the_gradient_by_a_point_is_that_of_the_mean_log_ratio():
    differences, index = torch.randn(7, 2), torch.tensor([0, 2, 2, 0, 2, 2, 2])
    found = parameter_gradient(differences, index, count=3)
    torch.testing.assert_close(found[0], differences[[0, 3]].sum(dim=0) / 7)
    assert not found[1].any()


@pytest.mark.parametrize(
    ("ratio", "scores", "expected"),
    [
        ([0.4, 0.5, 0.6], [2.0, 2.5, 3.0], "confirmed"),
        ([0.4, 0.5, 0.6], [1.0, 1.2, 1.3], "not confirmed"),
        ([0.4, 0.5, 2.6], [5.0, 6.5, 2.5], "not confirmed"),
        ([0.4, 0.5, 0.6], [0.2, 0.3, 0.4], "contradicted"),
        ([0.4, 0.5], [2.0, 2.5], "undecided"),
    ],
)
def test_each_verdict(ratio, scores, expected):
    columns = ("score_difference", "parameter_gradient")
    both = {"ratio": tuple(ratio), "two_scores": tuple(scores)}
    errors = {(name, column): values for name, values in both.items() for column in columns}
    factors = {each: sum(scores) / sum(ratio) for each in columns}
    assert verdict(errors, factors) == expected


@pytest.fixture(scope="module")
def found():
    return GradientBias(**SMALL, seeds=(3, 4)).conclude({})


def test_the_findings_of_small_networks(found):
    assert found.verdict == "undecided" and found.arrays["ratio.by_level"].shape == (2, 4)
    assert all(np.isfinite(each).all() for each in found.arrays.values())
    for column in ("score_difference", "parameter_gradient"):
        assert found.control[f"ratio.{column}"] == found.control[f"two_scores.{column}"] == 1.0
        ratio, scores = found.numbers[f"ratio.{column}"], found.numbers[f"two_scores.{column}"]
        assert found.numbers[f"factor.{column}"] == pytest.approx(scores / ratio)
    assert found.numbers["two_scores.score_difference.printed"] == 2.608
    assert found.numbers["ratio.parameter_gradient.printed"] == 0.275
    figure = Figure(layout="constrained")
    found.draw(figure)
    assert len(figure.axes) == 2 and svg(figure).startswith("<svg")


def test_a_seed_gives_the_same_bytes_whatever_the_others(found):
    again = GradientBias(**SMALL, seeds=(4,)).conclude({})
    for name in ("ratio.by_level", "two_scores.by_level", "ratio.score_difference"):
        assert again.arrays[name].tobytes() == found.arrays[name][1:].tobytes()


@pytest.mark.parametrize("output", ["score", "noise"])
def test_the_networks_of_a_seed_learn(output):
    fit = _ratio_and_scores.Fit(**{**FIT, "steps": 200}, score_output=output)
    losses = []
    _ratio_and_scores.estimates(GradientBias().points(), fit, seed=0, stepped=losses.append)
    first, last = (torch.stack(part).mean(dim=0) for part in (losses[:10], losses[-10:]))
    # A ratio of 1 has the loss 2 ln 2; a score of 0 has that of the noise, its dimension.
    torch.testing.assert_close(first, torch.tensor([2 * np.log(2), 2.0, 2.0]), rtol=0.2, atol=0.0, check_dtype=False)
    assert (last < torch.tensor([1.34, 1.95, 1.95])).all()


@pytest.mark.parametrize(
    "wrong",
    [{"sigma_min": 3.0}, {"seeds": (1, 2, 1)}, {"seeds": (0, 1, 0)}, {"columns": 1, "rows": 1}],
    ids=lambda each: next(iter(each)),
)
def test_options_that_fit_no_experiment(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        GradientBias(**wrong)
