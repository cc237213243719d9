"""Is a trained density ratio a verifier: does the best of N by its score look better? (DiffRatio, arXiv:2502.08005)."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from onestep.config.constraints import Constraint, Few, Name, Positive, RunName, Seed, SeedBlock, SmallCount, seeds_of
from onestep.studies import Features, Findings, Observable, RealFeatures, RoleWeights, Samples, Verdict
from onestep.studies._arms import LEAST_SEEDS, described, finite, spread

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Verifier"]

_ROLE = "ratio"
_GAIN = 2.0
_VALUES = {"frechet": "FD", "recall": "recall", "precision": "precision"}
_CHOSEN = {"best": "highest score", "random": "random"}

_Found = Mapping[str, tuple[tuple[float, ...], ...]]  # by choice and value, for each training those of each N


@dataclass(frozen=True, kw_only=True)
class Verifier:
    """FD and recall of the best of N candidates by the ratio network of the same run, at equal kept images.

    Attributes:
        runs: Runs of one recipe, one for each training seed, whose objective publishes its ratio network.
        sampler: Of the candidates.
        seeds: Block of image seeds of all candidates; the largest N of them make one kept image.
        dataset: Of the reference.
        features: Feature extractor of FD and recall.
        candidates: Values of N, ascending from 1.
        levels: Noise levels of the score, at the middles of equal parts of the law.
        sigma_min: End of the grid sigma(u) of the law.
        sigma_max: Start of the grid.
        rho: Exponent of the grid.
        reach: The law is u uniform in [0, reach]; 0.8 reaches 24.4 on the default grid.
        weight: w(sigma): 1, or sigma squared as in training.
        neighbours: k of recall and precision.
        batch: Images that pass through the ratio network at once.
        random_draws: Random choices whose mean is the control.
        noise_seed: Of the noise of the score, and of the random choices.
    """

    question: ClassVar[str] = (
        "The density ratio of a finished training is a verifier: the best of N candidates by its score are closer to "
        "the data."
    )
    rule: ClassVar[str] = (
        "At the largest N, gain is the FD of a random one of N minus that of the best of N, of the same candidates of "
        "a training. Confirmed: the gain of every training is above 0, and their mean is above "
        f"{_GAIN:g} times their deviation. Contradicted: it is below 0 for every training, and their mean is below "
        f"-{_GAIN:g} times their deviation. Not confirmed: otherwise. Undecided: fewer than {LEAST_SEEDS} training "
        "seeds. Recall is reported and does not decide."
    )
    choices: ClassVar[tuple[str, ...]] = (
        "The formula of the paper is not public. Here the score of an image x is the mean of w(sigma) l(x + sigma "
        "noise, sigma) over the noise levels, where l is the log ratio and noise one draw for each level, the same for "
        "all images.",
        "The law of the noise levels and w are options of the study; by default the law is that of training by "
        "default, and w is 1, since with sigma squared the highest levels alone decide.",
        "The ratio network is that of the last step, not an EMA; the generator is the EMA of the last snapshot.",
        "Every N keeps the same number of images, one of each group of candidates of one class; N = 1 keeps the first, "
        "and smaller N choose among the first of the group.",
        "The control of N is a random one of the same N candidates, as the mean over `random_draws` such choices.",
        "Images are scored as they are stored, in 8 bits.",
    )

    runs: Annotated[tuple[RunName, ...], Constraint(min_length=1)]
    sampler: Name
    seeds: SeedBlock
    dataset: Name
    features: Name
    candidates: Annotated[tuple[SmallCount, ...], Constraint(min_length=2, max_length=16)] = (1, 2, 4, 8, 16)
    levels: Annotated[int, Constraint(ge=1, le=256)] = 8
    sigma_min: Positive = 0.002
    sigma_max: Positive = 80.0
    rho: Positive = 7.0
    reach: Annotated[float, Constraint(gt=0, le=1)] = 0.8
    weight: Literal["one", "sigma_squared"] = "one"
    neighbours: SmallCount = 3
    batch: Annotated[int, Constraint(gt=0, le=65_536)] = 512
    random_draws: Few = 4
    noise_seed: Seed = 0

    def __post_init__(self) -> None:
        if twice := next((run for run in self.runs if self.runs.count(run) > 1), None):
            raise ValueError(f"runs: got {twice} twice, expected one run for each training seed")
        if self.candidates[0] != 1 or list(self.candidates) != sorted(set(self.candidates)):
            raise ValueError(f"candidates: got {list(self.candidates)}, expected ascending numbers from 1 on")
        if self.sigma_min >= self.sigma_max:
            below = f"expected a noise level below sigma_max, which is {self.sigma_max}"
            raise ValueError(f"sigma_min: got {self.sigma_min}, {below}")
        kept = len(seeds_of(self.seeds)) // self.candidates[-1]
        if kept <= self.neighbours:
            expected = f"expected at least {(self.neighbours + 1) * self.candidates[-1]} seeds"
            raise ValueError(f"seeds: got {self.seeds}, which keeps {kept} images, {expected}")

    def observes(self) -> Mapping[str, Observable]:
        """Return images and features of the candidates, the ratio network of each run, and the real features."""
        found: dict[str, Observable] = {"real": RealFeatures(dataset=self.dataset, features=self.features)}
        for run in self.runs:
            block: dict[str, str] = {"model": run, "sampler": self.sampler, "seeds": self.seeds}
            found[f"images.{run}"] = Samples(**block)
            found[f"features.{run}"] = Features(**block, features=self.features)
            found[f"ratio.{run}"] = RoleWeights(run=run, role=_ROLE)
        return found

    def law(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return the noise levels of the score, and their weights."""
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        parts = [(index + 0.5) / self.levels * self.reach for index in range(self.levels)]
        levels = tuple((low + u * (high - low)) ** self.rho for u in parts)
        return levels, tuple(level**2 if self.weight == "sigma_squared" else 1.0 for level in levels)

    def conclude(self, files: Mapping[str, Sequence[Path]]) -> Findings:
        """Return FD, recall and precision by N, of the best and of random candidates, and the gains."""
        import numpy as np

        from onestep.archive import read_arrays

        real = read_arrays(files["real"][0], ("features",)).arrays["features"]
        measured: dict[str, list[tuple[float, ...]]] = {f"{c}.{v}": [] for c in _CHOSEN for v in _VALUES}
        everything = []
        for run in self.runs:
            found, scored = self._measured(run, files, real)
            everything.append(scored)
            for name, values in found.items():
                measured[name].append(values)
        by_name = {name: tuple(values) for name, values in measured.items()}
        levels, weights = self.law()
        arrays = {name: np.array(values) for name, values in by_name.items()}
        arrays |= {"scores": np.stack(everything), "candidates": np.array(self.candidates, dtype=np.int64)}
        arrays |= {"sigma": np.array(levels), "weight": np.array(weights)}
        gains = gains_of(by_name)
        numbers: dict[str, Any] = {"seeds": len(self.runs), **described("gain", spread(gains))}
        control: dict[str, float] = {}
        for place, count in enumerate(self.candidates):
            for value in _VALUES:
                for chosen, target in (("best", numbers), ("random", control)):
                    over = spread(values[place] for values in by_name[f"{chosen}.{value}"])
                    target |= described(f"{count}.{value}", over)
        return Findings(
            arrays=arrays,
            numbers=finite(numbers),
            control=control,
            verdict=verdict(gains),
            draw=functools.partial(_draw, found=by_name, counts=self.candidates),
        )

    def _measured(
        self, run: str, files: Mapping[str, Sequence[Path]], real: np.ndarray
    ) -> tuple[dict[str, tuple[float, ...]], np.ndarray]:
        """Return the values of each N of one run, and the scores of its candidates."""
        from onestep.archive import read_arrays
        from onestep.metrics.frechet import FrechetDistance
        from onestep.metrics.precision_recall import PrecisionRecall
        from onestep.studies import _best_of

        source = files[f"images.{run}"][0]
        pixels, labels = _best_of.read_candidates(source)
        features = read_arrays(files[f"features.{run}"][0], ("features",)).arrays["features"]
        if len(features) != len(pixels):
            raise ValueError(f"{source}: got {len(pixels)} images of {len(features)} features. Fix: delete it")
        network, (levels, weights) = _best_of.load_ratio(files[f"ratio.{run}"][0]), self.law()
        options: dict[str, Any] = {"levels": levels, "weights": weights, "seed": self.noise_seed, "batch": self.batch}
        scored = _best_of.scores(network, pixels, labels, **options, label=f"scores of {run}")
        together = _best_of.groups(labels, size=self.candidates[-1])
        metrics = (FrechetDistance(), PrecisionRecall(neighbours=self.neighbours))
        found: dict[str, list[float]] = {}
        for count in self.candidates:
            shown = together[:, :count]
            seeds = range(self.noise_seed, self.noise_seed + (self.random_draws if count > 1 else 1))
            choices = {"best": [_best_of.best(shown, scored)]}
            choices["random"] = [_best_of.any_of(shown, seed=seed) for seed in seeds]
            for chosen, draws in choices.items():
                for metric in metrics:
                    values = [metric(generated=features[indices], real=real) for indices in draws]
                    for value in metric.values:
                        mean = statistics.fmean(each[value] for each in values)
                        found.setdefault(f"{chosen}.{value}", []).append(mean)
        return {name: tuple(values) for name, values in found.items()}, scored


def gains_of(found: _Found) -> list[float]:
    """Return for each training the FD of a random one of the largest N minus that of the best."""
    pairs = zip(found["random.frechet"], found["best.frechet"], strict=True)
    return [at_random[-1] - best[-1] for at_random, best in pairs]


def verdict(gains: Sequence[float]) -> Verdict:
    """Return the verdict of the rule."""
    if len(gains) < LEAST_SEEDS:
        return "undecided"
    mean, deviation = statistics.fmean(gains), statistics.stdev(gains)
    if all(gain > 0 for gain in gains) and mean > _GAIN * deviation:
        return "confirmed"
    return "contradicted" if all(gain < 0 for gain in gains) and mean < -_GAIN * deviation else "not confirmed"


def _draw(figure: Figure, *, found: _Found, counts: Sequence[int]) -> None:
    figure.set_size_inches(7.2, 3.0)
    left, right = figure.subplots(1, 2)
    _draw_value(left, found, "frechet", counts=counts)
    _draw_value(right, found, "recall", counts=counts)
    left.set_title("A  distance to the data")
    right.set_title("B  coverage of the data")


def _draw_value(axes: Axes, found: _Found, value: str, *, counts: Sequence[int]) -> None:
    for number, (chosen, label) in enumerate(_CHOSEN.items()):
        points = [spread(values) for values in zip(*found[f"{chosen}.{value}"], strict=True)]
        axes.errorbar(
            [count * (0.98, 1.02)[number] for count in counts],  # apart, so that both bars are seen
            [each.mean for each in points],
            yerr=[each.deviation or 0.0 for each in points],
            marker="os"[number],
            markersize=3,
            color=("C0", "0.5")[number],
            linestyle=("-", "--")[number],
            capsize=1.5,
            label=label,
        )
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(counts), list(map(str, counts)))
    axes.minorticks_off()
    axes.set_xlabel("candidates for each kept image")
    axes.set_ylabel(_VALUES[value])
    axes.legend()
