"""Is one ratio less biased than two scores? (DiffRatio, arXiv:2502.08005, in the set-up of arXiv:2610.10021)."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from onestep.config.constraints import Constraint, Few, NotNegative, Positive, Seed, Width
from onestep.studies import Findings, Observable, Verdict
from onestep.studies._arms import LEAST_SEEDS, described, spread

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

    from onestep.studies._ratio_and_scores import Estimates
    from onestep.studies._smoothed_points import SmoothedPoints

__all__ = ["GradientBias"]

_FACTOR = 3.0
_ESTIMATORS = {"ratio": "one ratio", "two_scores": "two scores"}
_COLUMNS = {"score_difference": "score difference", "parameter_gradient": "parameter gradient"}
# Of arXiv:2610.10021, table 1: mean and deviation over ten seeds.
_PRINTED = {
    ("ratio", "score_difference"): (0.408, 0.030),
    ("ratio", "parameter_gradient"): (0.275, 0.031),
    ("two_scores", "score_difference"): (2.608, 0.376),
    ("two_scores", "parameter_gradient"): (6.225, 1.834),
}

_Errors = Mapping[tuple[str, str], tuple[float, ...]]  # by estimator and column, one for each training seed


@dataclass(frozen=True, kw_only=True)
class GradientBias:
    """Errors of a fitted log ratio and of two fitted scores, beside their closed form on blurred points.

    It reads no files: its job trains the small networks, three for each seed. The defaults are the published settings,
    unless `choices` names them. Equal options and threads give equal bytes.

    Attributes:
        columns: Of the grid of points.
        rows: Of the grid of points.
        half: The grid covers [-half, half]^2.
        jitter: Deviation of the points from the grid.
        points_seed: Seed of the jitter.
        contrast: The weight of a point in class y is exp(contrast y b).
        layers: Hidden layers of each network.
        batch: Rows of each network at each step; of the ratio's, one half has independent labels.
        sigma_min: Least noise level; ln sigma is uniform.
        held_out: Rows on which both estimators are compared.
        seeds: Training seeds; each has held-out rows of its own.
        score_output: What the score networks return: the score, or sigma times it.
        levels: Bins of the noise level in the figure.
    """

    question: ClassVar[str] = (
        "The gradient from one fitted density ratio is less biased than that from two separately fitted scores."
    )
    rule: ClassVar[str] = (
        "Errors are relative, of the score difference over the held-out rows and of the gradient by the points; factor "
        "is the mean error of the two scores over the training seeds divided by that of the ratio. "
        f"Confirmed: the factor is at least {_FACTOR:g} in both columns, and the two scores have the larger errors in "
        "both for each seed. Contradicted: the factor is below 1 in a column. Not confirmed: otherwise. "
        f"Undecided: fewer than {LEAST_SEEDS} training seeds."
    )
    choices: ClassVar[tuple[str, ...]] = (
        "Set-up and the numbers `printed` are those of Yu et al., Controlling Dependence in Implicit Generative Models "
        "via Spread Mutual Information (arXiv:2610.10021, appendix C.1.2 and table 1, ten seeds): numbers of that "
        "paper, not of this project. It follows DiffRatio's comparison; that DiffRatio has the same set-up is likely, "
        "not known.",
        "Its jitter is unknown: 0.2 N(0, 1) here, the same points for all training seeds.",
        "Inputs of the networks are x, y and ln sigma; those of the paper are unknown for this experiment. Each "
        "network has rows of its own.",
        "The batch counts rows through a network, so half of the ratio's rows are joint pairs and half have "
        "independent labels. The paper may count pairs, which would double the work of the ratio.",
        "The error of the score difference is the root mean square of the error divided by that of the exact one, both "
        "over all held-out rows; so it is by noise level in the figure, where the exact one vanishes at low noise.",
        "The gradient by a point is the mean over the rows of the score difference at rows of that point, as for "
        "mutual information; it is compared with the same mean of the exact one in Euclidean norm.",
        "The control is an estimate of zero, whose errors are 1; for a factor, the largest between two trainings of "
        "the ratio.",
    )

    columns: Few = 5
    rows: Few = 8
    half: Positive = 4.0
    jitter: NotNegative = 0.2
    points_seed: Seed = 0
    contrast: Positive = 2.0
    layers: Few = 4
    width: Width = 256
    learning_rate: Positive = 1e-3
    batch: Annotated[int, Constraint(ge=2, le=2**20, multiple_of=2)] = 2_048
    steps: Annotated[int, Constraint(gt=0, le=10**7)] = 20_000
    sigma_min: Positive = 0.05
    sigma_max: Positive = 2.0
    held_out: Annotated[int, Constraint(ge=1_024, le=2**24)] = 16_384
    seeds: Annotated[tuple[Seed, ...], Constraint(min_length=1)] = tuple(range(10))
    score_output: Literal["score", "noise"] = "score"
    levels: Annotated[int, Constraint(ge=2, le=32)] = 12

    def __post_init__(self) -> None:
        if self.sigma_min >= self.sigma_max:
            below = f"expected a noise level below sigma_max, which is {self.sigma_max}"
            raise ValueError(f"sigma_min: got {self.sigma_min}, {below}")
        twice = next((seed for seed in self.seeds if self.seeds.count(seed) > 1), None)
        if twice is not None:
            raise ValueError(f"seeds: got {twice} twice, expected each training seed once")
        if self.columns * self.rows < 2:
            raise ValueError("columns and rows: got 1 point, expected at least 2")

    def observes(self) -> Mapping[str, Observable]:
        """Return nothing: all rows are drawn here."""
        return {}

    def conclude(self, files: Mapping[str, Sequence[Path]]) -> Findings:
        """Train the networks of each seed; return their errors in all and by noise level, and their factors."""
        import contextlib

        import numpy as np

        from onestep.studies import _ratio_and_scores

        points, fit = self.points(), self._fit()
        progress = _ratio_and_scores.Progress("gradient_bias", steps=self.steps * len(self.seeds))
        with contextlib.closing(progress):
            found = [self._measured(points, seed=seed, fit=fit, stepped=progress) for seed in self.seeds]
        errors = {
            (estimator, column): tuple(float(each[f"{estimator}.{column}"]) for each in found)
            for estimator in _ESTIMATORS
            for column in _COLUMNS
        }
        arrays = {name: np.stack([each[name] for each in found]) for name in found[0]}
        arrays |= {"points": points.points.numpy(), "log_weights": points.log_weights.numpy(), "edges": self.edges()}
        factors = {column: factor_of(errors, column) for column in _COLUMNS}
        numbers: dict[str, float] = {"seeds": len(self.seeds)}
        control: dict[str, float] = {}
        for (estimator, column), values in errors.items():
            numbers |= described(f"{estimator}.{column}", spread(values))
            control[f"{estimator}.{column}"] = 1.0
        for column, factor in factors.items():
            numbers[f"factor.{column}"] = factor
            control[f"factor.{column}"] = max(errors["ratio", column]) / min(errors["ratio", column])
        for name in ("conditional_score", "marginal_score"):
            numbers |= described(name, spread(arrays[name].tolist()))
        for (estimator, column), (mean, deviation) in _PRINTED.items():
            numbers |= {f"{estimator}.{column}.printed": mean, f"{estimator}.{column}.printed.deviation": deviation}
        return Findings(
            arrays=arrays,
            numbers=numbers,
            control=control,
            verdict=verdict(errors, factors),
            draw=functools.partial(_draw, arrays=arrays, errors=errors),
        )

    def points(self) -> SmoothedPoints:
        """Return the blurred points."""
        from onestep.studies._smoothed_points import SmoothedPoints, class_log_weights, jittered_grid

        grid: dict[str, Any] = {"columns": self.columns, "rows": self.rows, "half": self.half}
        places = jittered_grid(**grid, jitter=self.jitter, seed=self.points_seed)
        return SmoothedPoints(places, class_log_weights(places, contrast=self.contrast))

    def edges(self) -> np.ndarray:
        """Return the noise levels between the bins [levels + 1], evenly spaced in ln sigma."""
        import numpy as np

        return np.geomspace(self.sigma_min, self.sigma_max, self.levels + 1)

    def _fit(self) -> Any:
        from onestep.studies._ratio_and_scores import Fit

        same = ("layers", "width", "learning_rate", "batch", "steps", "held_out", "score_output")
        return Fit(levels=(self.sigma_min, self.sigma_max), **{name: getattr(self, name) for name in same})

    def _measured(self, points: SmoothedPoints, *, seed: int, fit: Any, stepped: Any) -> dict[str, Any]:
        from onestep.studies._ratio_and_scores import estimates

        return errors_of(points, estimates(points, fit, seed=seed, stepped=stepped), edges=self.edges())


def errors_of(points: SmoothedPoints, found: Estimates, *, edges: np.ndarray) -> dict[str, Any]:
    """Return the errors of one training.

    `{estimator}.score_difference` and `.parameter_gradient`, `conditional_score` and `marginal_score`, each relative;
    by noise level [levels] `{estimator}.by_level`, and `exact.by_level`, the size of the exact score difference, both
    relative to its size over all rows.
    """
    import numpy as np

    at = found.rows
    given, either = points.scores(at.x, at.labels, at.sigma)
    exact = points.score_difference(at.x, at.labels, at.sigma)
    size = _root_mean_square(exact)
    bins = np.clip(np.digitize(at.sigma.numpy(), edges) - 1, 0, len(edges) - 2)

    def by_level(values: Tensor) -> np.ndarray:
        return np.array([_root_mean_square(values[bins == level]) / size for level in range(len(edges) - 1)])

    numbers: dict[str, Any] = {
        "conditional_score": _root_mean_square(found.conditional - given) / _root_mean_square(given),
        "marginal_score": _root_mean_square(found.marginal - either) / _root_mean_square(either),
        "exact.by_level": by_level(exact),
    }
    gradient = parameter_gradient(exact, at.index, count=len(points.points))
    for name, estimate in (("ratio", found.ratio), ("two_scores", found.conditional - found.marginal)):
        error = parameter_gradient(estimate, at.index, count=len(points.points)) - gradient
        numbers[f"{name}.score_difference"] = _root_mean_square(estimate - exact) / size
        numbers[f"{name}.parameter_gradient"] = float(error.norm() / gradient.norm())
        numbers[f"{name}.by_level"] = by_level(estimate - exact)
    return numbers


def parameter_gradient(differences: Tensor, index: Tensor, *, count: int) -> Tensor:
    """Return the gradient by each of `count` points [M, 2] from the score differences of rows [N, 2] of points [N]."""
    return differences.new_zeros(count, differences.shape[1]).index_add(0, index, differences) / len(differences)


def _root_mean_square(rows: Tensor) -> float:
    return float(rows.square().sum(dim=1).mean().sqrt())


def factor_of(errors: _Errors, column: str) -> float:
    """Return the mean error of the two scores divided by that of the ratio."""
    return statistics.fmean(errors["two_scores", column]) / statistics.fmean(errors["ratio", column])


def verdict(errors: _Errors, factors: Mapping[str, float]) -> Verdict:
    """Return the verdict of the rule."""
    pairs = [
        pair for column in _COLUMNS for pair in zip(errors["ratio", column], errors["two_scores", column], strict=True)
    ]
    if len(pairs) < LEAST_SEEDS * len(_COLUMNS):
        return "undecided"
    if all(factor >= _FACTOR for factor in factors.values()) and all(ratio < scores for ratio, scores in pairs):
        return "confirmed"
    return "contradicted" if any(factor < 1 for factor in factors.values()) else "not confirmed"


def _draw(figure: Figure, *, arrays: Mapping[str, np.ndarray], errors: _Errors) -> None:
    figure.set_size_inches(7.2, 3.2)
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    _draw_levels(left, arrays)
    _draw_columns(right, errors)


def _draw_levels(axes: Axes, arrays: Mapping[str, np.ndarray]) -> None:
    import numpy as np

    from onestep.studies._arms_figure import few_ticks

    edges = arrays["edges"]
    centres = np.sqrt(edges[:-1] * edges[1:])
    for number, (name, label) in enumerate(_ESTIMATORS.items()):
        values = arrays[f"{name}.by_level"]
        colour, mean = f"C{2 * number}", values.mean(axis=0)
        axes.plot(centres, mean, marker="os"[number], markersize=3, color=colour, label=label)
        axes.fill_between(centres, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.2, linewidth=0)
    exact = arrays["exact.by_level"].mean(axis=0)
    axes.plot(centres, exact, color="0.5", linestyle="--", linewidth=1, label="exact difference")
    axes.set_xscale("log")
    axes.set_yscale("log")
    few_ticks(axes.xaxis, list(edges))
    # The exact difference vanishes at low noise.
    reach = [float(value) for name in _ESTIMATORS for value in arrays[f"{name}.by_level"].mean(axis=0)]
    axes.set_ylim(0.6 * min(reach), 1.5 * max(*reach, 1.0))
    few_ticks(axes.yaxis, reach)
    axes.set_xlabel("noise level")
    axes.set_ylabel("relative error, score difference")
    axes.set_title("A  by noise level")
    axes.legend()


def _draw_columns(axes: Axes, errors: _Errors) -> None:
    from onestep.studies._arms_figure import few_ticks

    for number, estimator in enumerate(_ESTIMATORS):
        look: dict[str, Any] = {"color": f"C{2 * number}", "marker": "os"[number]}
        for place, column in enumerate(_COLUMNS):
            values = errors[estimator, column]
            axes.plot([place - 0.12] * len(values), values, linestyle="", **look)
            mean, deviation = _PRINTED[estimator, column]
            axes.errorbar(place + 0.12, mean, yerr=deviation, mfc="none", capsize=2, **look)
    for label, inside in (("here, each training seed", "0.5"), ("printed in arXiv:2610.10021", "none")):
        axes.plot([], [], marker="o", linestyle="", color="0.5", mfc=inside, label=label)
    axes.axhline(1, color="0.5", linestyle="--", linewidth=1)
    reach = [value for values in (*errors.values(), *_PRINTED.values()) for value in values[:1]]
    axes.set_yscale("log")
    axes.set_ylim(0.5 * min(reach), 5 * max(reach))  # with room for the legend
    few_ticks(axes.yaxis, reach)
    axes.set_xticks(range(len(_COLUMNS)), [label.replace(" ", "\n") for label in _COLUMNS.values()])
    axes.set_xlim(-0.5, len(_COLUMNS) - 0.5)
    axes.set_ylabel("relative error")
    axes.set_title("B  all noise levels")
    axes.legend(loc="upper left")
