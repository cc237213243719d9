"""How large may the gradient penalty be? (D2O, arXiv:2506.09376: 1e-4 to 4e-4 by dataset; too large explodes)."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from onestep.config.constraints import Count, Positive
from onestep.records import read_run_config
from onestep.studies import Configuration, Findings, Observable, Verdict
from onestep.studies._arms import (
    CHOICES,
    COLLAPSE,
    UNDECIDED,
    StudyOfArms,
    Trainings,
    arrays_of,
    check_arms,
    decided,
    finite,
    gap,
    spread,
)
from onestep.studies._arms_figure import few_ticks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["R1Gamma"]

_SHARE = 1e-3  # of the gradient entries of a record that are not finite, above which a training has exploded


@dataclass(frozen=True, kw_only=True)
class R1Gamma(StudyOfArms):
    """One arm for each weight of the penalty, all else equal.

    The penalty is on the gradient of the sum of all logits of an image. So a weight gamma of a discriminator with L
    logits an image is equivalent to gamma (L / 548)^2 of the paper's on CIFAR-10, which has 548.

    Attributes:
        arms: By label, the runs of an arm, one for each training seed; the weight is the run's `objective.r1_gamma`.
        logits: Logits of an image in these runs.
        published_logits: Logits of an image in the paper's.
        reference: The weight, on the paper's scale, whose arm is the control: the nearest one, up to a factor of 2.
    """

    question: ClassVar[str] = "The gradient penalty has a largest weight, above which training explodes, and is needed."
    rule: ClassVar[str] = (
        f"A training has exploded if {COLLAPSE}, or if more than {_SHARE:g} of the gradient entries of a record of its "
        "log are not finite. Confirmed: there is a weight above which each training has exploded, and up to which, "
        "without 0, none has; and without penalty each training has exploded, or the mean last value is above that of "
        "the control by more than 2 deviations. Contradicted: none has exploded, and without penalty the mean last "
        "value is below that of the control by more than 2 deviations. Not confirmed: otherwise. "
        f"{UNDECIDED[:-1]}, or no arm without penalty."
    )
    choices: ClassVar[tuple[str, ...]] = (
        "Weights are given on the scale of the paper: gamma (L / 548)^2 for L logits an image, since the penalty is "
        "quadratic in the sum of the logits.",
        "The largest logit is the mean over the steps of a record of the largest absolute logit, and over the log the "
        "largest of these; without `observe: extremes` it is that of the mean logits.",
        "Gradient entries that are not finite are replaced during training, as in the reference, and counted.",
        *CHOICES,
    )

    logits: Count
    published_logits: Count = 548
    reference: Positive = 1e-4

    def __post_init__(self) -> None:
        check_arms(self.arms)
        if len(self.arms) < 3:
            raise ValueError(f"arms: got {len(self.arms)} weights, expected at least 3")

    def observes(self) -> Mapping[str, Observable]:
        """Return the measurements of each snapshot, the logs and the configurations."""
        return {**super().observes(), **{f"run.{run}": Configuration(run=run) for run in self.runs}}

    def conclude(self, files: Mapping[str, Sequence[Path]]) -> Findings:
        """Return for each weight last and best values, explosions, largest logit and share of non-finite gradients."""
        import numpy as np

        found = self.trainings(files)
        weights = self._weights(files)
        control = self._control(weights)
        logits = {run: _largest_logit(records) for run, records in found.logs.items()}
        shares = {run: _largest_share(records) for run, records in found.logs.items()}
        exploded = {
            label: tuple(
                reason is not None or shares[run] > _SHARE
                for run, reason in zip(self.arms[label], found.collapses[label], strict=True)
            )
            for label in self.arms
        }
        numbers = found.numbers(value=self.value)
        for label, runs in self.arms.items():
            numbers |= {f"{label}.weight": weights[label], f"{label}.exploded": sum(exploded[label])}
            numbers |= {f"{label}.largest_logit": max(logits[run] for run in runs)}
            numbers |= {f"{label}.non_finite_share": max(shares[run] for run in runs)}
        arrays = arrays_of(found.curves, value=self.value) | {
            "weights": np.array(list(weights.values())),
            "largest_logit": np.array([max(logits[run] for run in self.arms[label]) for label in weights]),
            "exploded": np.array([sum(exploded[label]) for label in weights], dtype=np.int64),
        }
        points = {label: found.last(label) for label in weights}
        return Findings(
            arrays=arrays,
            numbers=finite(numbers | found.gaps(control)),
            control=found.levels(control, value=self.value),
            verdict=decided(self.arms, _verdict(found, weights=weights, exploded=exploded, control=control)),
            draw=functools.partial(
                _draw,
                weights=weights,
                points=points,
                logits={label: [logits[run] for run in self.arms[label]] for label in weights},
                exploded=exploded,
                label=self.measured,
            ),
        )

    def _weights(self, files: Mapping[str, Sequence[Path]]) -> dict[str, float]:
        """Return the weight of each arm on the paper's scale, ascending."""
        found: dict[str, float] = {}
        for label, runs in self.arms.items():
            own = {float(_configured(path, run=run)["r1_gamma"]) for run in runs for path in files[f"run.{run}"]}
            if len(own) > 1:
                raise ValueError(f"arms.{label}: got the weights {sorted(own)}, expected one for all its runs")
            found[label] = own.pop() * (self.logits / self.published_logits) ** 2
        return dict(sorted(found.items(), key=lambda each: each[1]))

    def _control(self, weights: Mapping[str, float]) -> str:
        distance = {label: abs(math.log(each / self.reference)) for label, each in weights.items() if each > 0}
        nearest = min(distance, key=lambda label: distance[label], default=None)
        if nearest is None or distance[nearest] > math.log(2):
            found = ", ".join(f"{each:g}" for each in weights.values())
            raise ValueError(
                f"reference: got {self.reference:g}, expected one of the weights {found}, up to a factor 2"
            )
        return nearest


def _configured(path: Path, *, run: str) -> Mapping[str, Any]:
    objective: Mapping[str, Any] = read_run_config(path, run=run)[1]["objective"]
    if "r1_gamma" not in objective:
        raise ValueError(f"{path}: got objective {objective.get('name')}, expected one with r1_gamma")
    return objective


def _largest_logit(records: Iterable[Mapping[str, Any]]) -> float:
    """Return the largest absolute logit of a log; infinity where one is not finite, or none is logged."""
    names = ("logit_max", "logits_fake", "logits_real")
    found = [
        math.inf if value is None else abs(float(value))
        for record in records
        for name, value in record.get("observed", {}).items()
        if name in names
    ]
    return max(found, default=math.inf)


def _largest_share(records: Iterable[Mapping[str, Any]]) -> float:
    return max((float(record.get("non_finite_share", 0.0)) for record in records), default=0.0)


def _verdict(
    found: Trainings, *, weights: Mapping[str, float], exploded: Mapping[str, Sequence[bool]], control: str
) -> Verdict:
    positive = [label for label, weight in weights.items() if weight > 0]
    first = next((place for place, label in enumerate(positive) if any(exploded[label])), len(positive))
    threshold = 0 < first < len(positive) and all(all(exploded[label]) for label in positive[first:])
    without = next((label for label, weight in weights.items() if weight == 0), None)
    if without is None:
        return "undecided"
    worse = gap(found.last(without), found.last(control))
    needed = all(exploded[without]) or (worse is not None and worse > 2)
    if threshold and needed:
        return "confirmed"
    none = not any(any(each) for each in exploded.values())
    return "contradicted" if none and worse is not None and worse < -2 else "not confirmed"


def _draw(
    figure: Figure,
    *,
    weights: Mapping[str, float],
    points: Mapping[str, Sequence[float]],
    logits: Mapping[str, Sequence[float]],
    exploded: Mapping[str, Sequence[bool]],
    label: str,
) -> None:
    """Draw last value and largest logit over the weight, with 0 left of the others, and crosses for explosions."""
    from matplotlib.ticker import NullLocator

    figure.set_size_inches(6.6, 3.0)
    positive = [weight for weight in weights.values() if weight > 0]
    least = min(positive) / 10
    decades = range(math.ceil(math.log10(min(positive))), math.floor(math.log10(max(positive))) + 1)
    ticks = {10.0**place: f"1e{place}" for place in decades} | ({least: "0"} if 0 in weights.values() else {})
    for axes, values, name in zip(figure.subplots(1, 2), (points, logits), (label, "largest logit"), strict=True):
        shown = {arm: [each for each in values[arm] if math.isfinite(each)] for arm in weights}
        for arm, weight in ((arm, weight) for arm, weight in weights.items() if shown[arm]):
            over = spread(shown[arm])
            marker, colour = ("x", "C2") if any(exploded[arm]) else ("o", "C0")
            bars = ([min(over.deviation or 0.0, 0.9 * over.mean)], [over.deviation or 0.0])
            axes.errorbar([weight or least], [over.mean], yerr=bars, fmt=marker, color=colour, capsize=1.5)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks(list(ticks), list(ticks.values()))
        axes.xaxis.set_minor_locator(NullLocator())
        few_ticks(axes.yaxis, [each for group in shown.values() for each in group])
        axes.set_xlabel("weight of R1 (paper's scale)")
        axes.set_ylabel(name)
