"""Is a frozen network fine-tuned on fewer images? (D2O-F, arXiv:2506.09376: FID about 4.1 after 0.2 M images)."""

from __future__ import annotations

import functools
import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from onestep.archive import read_arrays
from onestep.config.constraints import Constraint, Count, Text
from onestep.config.subset import Subset
from onestep.models import parse_model
from onestep.records import read_run_config
from onestep.studies import (
    Configuration,
    Findings,
    Measurements,
    Observable,
    RealFeatures,
    RealImages,
    SnapshotFeatures,
    Verdict,
)
from onestep.studies._arms import (
    CHOICES,
    COLLAPSE,
    UNDECIDED,
    Curve,
    StudyOfArms,
    Trainings,
    arrays_of,
    check_arms,
    collapse_of,
    crossings,
    decided,
    described,
    finite,
    gap,
    mean_curve,
    spread,
)
from onestep.studies._arms_figure import draw_curves, few_ticks

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

__all__ = ["FewImages"]

_MOST = 10_000  # generated images of a block whose neighbours are found

Pairs = Annotated[tuple[Annotated[tuple[Text, ...], Constraint(min_length=2)], ...], Constraint(min_length=1)]


@dataclass(frozen=True, kw_only=True)
class FewImages(StudyOfArms):
    """Few images seen, and few images to see: D2O against D2O-F on the whole dataset and on subsets of it.

    Attributes:
        pairs: Labels of arms that train on the same images, D2O first, then D2O-F, of the latter one for each learning
            rate. The first pair trains on the whole dataset, the others on a `subset`.
        at: Images seen at which the claim is tested; each run of the first pair has a snapshot there.
        dataset: Of the runs.
        features: Feature extractor of the distances to the nearest training image; None for none.
        seeds: Seed blocks; distances are those of the first one.
    """

    question: ClassVar[str] = "With few images a frozen network is fine-tuned well, and full fine-tuning collapses."
    rule: ClassVar[str] = (
        f"A training has collapsed at its end if {COLLAPSE}; after `at` images, if its value is above 3 times the "
        "least one so far. Confirmed: after `at` images the mean value of the frozen arm is below that of full "
        "fine-tuning by more than 2 deviations, and each full fine-tuning has collapsed, there or at the end on the "
        "smallest subset. Contradicted: after `at` images full fine-tuning is below the frozen arm by more than 2 "
        "deviations, and none of its trainings has collapsed there. "
        f"Not confirmed: otherwise. {UNDECIDED}"
    )
    choices: ClassVar[tuple[str, ...]] = (
        "0.2 M images are read as images seen, four epochs of CIFAR-10; the subsets test the other reading.",
        "Of several learning rates of the frozen arm, that with the least mean value at the tested number of images "
        "counts, on subsets at the end, which favours the claim.",
        "A subset has of each class its share of the dataset, and contains each smaller one of its seed.",
        "Values are those against the whole dataset, whatever a run was trained on.",
        "The distance of a generated image is that of its features to the nearest training image; the control is that "
        "to the nearest of as many images that the run has not seen, and the share of images nearer to training images "
        "is 0.5 where nothing is memorized.",
        *CHOICES,
    )

    pairs: Pairs
    at: Count
    dataset: str
    features: str | None = None

    def __post_init__(self) -> None:
        if not self.pairs or any(len(pair) < 2 for pair in self.pairs):
            raise ValueError("pairs: got one without a frozen arm, expected D2O and D2O-F in each")
        check_arms(self.arms, named=itertools.chain.from_iterable(self.pairs))

    def observes(self) -> Mapping[str, Observable]:
        """Return the measurements of each snapshot, logs, configurations, and the features of generated images."""
        found: dict[str, Observable] = dict(super().observes())
        for run in self.runs:
            found[f"run.{run}"] = Configuration(run=run)
            if self.features is not None:
                found[f"features.{run}"] = SnapshotFeatures(
                    run=run, sampler=self.sampler, seeds=self.seeds[0], features=self.features
                )
        for run in (run for label in self.pairs[0] for run in self.arms[label]):
            found[f"at.{run}"] = Measurements(
                model=f"{run}@{self.at}", sampler=self.sampler, seeds=tuple(self.seeds), metric=self.metric
            )
        if self.features is not None:
            found["real"] = RealFeatures(dataset=self.dataset, features=self.features)
            found["images"] = RealImages(dataset=self.dataset)
        return found

    def conclude(self, files: Mapping[str, Sequence[Path]]) -> Findings:
        """Return the values at the tested number of images and at the end, crossings, and distances to neighbours."""
        found = self.trainings(files)
        subsets = {label: self._subset(label, files) for label in self.arms}
        tested = {label: tuple(_until(curve, self.at).last for curve in found.curves[label]) for label in self.pairs[0]}
        for pair in self.pairs:
            if other := next((label for label in pair if subsets[label] != subsets[pair[0]]), None):
                found_there = f"got {subsets[other]} of {other}"
                raise ValueError(f"pairs: {found_there}, expected the subset of {pair[0]}: {subsets[pair[0]]}")
        full, frozen = self.pairs[0][0], min(self.pairs[0][1:], key=lambda label: statistics.fmean(tested[label]))
        numbers: dict[str, float | None] = dict(found.numbers(value=self.value))
        for label, values in tested.items():
            numbers |= described(f"{label}.{self.value}.tested", spread(values))
        numbers["tested.gap"] = gap(tested[frozen], tested[full])
        crossed = crossings(mean_curve(found.curves[full]), mean_curve(found.curves[frozen]))
        numbers |= {f"crossing.{place}": images for place, images in enumerate(crossed, start=1)}
        for pair in self.pairs:
            best = _best_frozen(pair, found)
            numbers[f"{best} against {pair[0]}.gap"] = gap(found.last(best), found.last(pair[0]))
        control = {f"{label}.{self.value}.tested": statistics.fmean(tested[full]) for label in self.pairs[0][1:]}
        if self.features is not None:
            nearest, unseen = self._neighbours(files, subsets)
            numbers |= nearest
            control |= unseen
        sizes = {pair[0]: None if (subset := subsets[pair[0]]) is None else subset.images for pair in self.pairs}
        return Findings(
            arrays=arrays_of(found.curves, value=self.value),
            numbers=finite(numbers),
            control=control,
            verdict=decided(self.arms, self._verdict(found, tested, frozen=frozen, sizes=sizes)),
            draw=functools.partial(_draw, pairs=self.pairs, found=found, at=self.at, sizes=sizes, label=self.measured),
        )

    def _subset(self, label: str, files: Mapping[str, Sequence[Path]]) -> Subset | None:
        """Return the subset on which the runs of an arm train; None for the whole dataset."""
        runs = self.arms[label]
        found = [read_run_config(path, run=run)[1] for run in runs for path in files[f"run.{run}"]]
        for run, each in zip(runs, found, strict=True):
            if each.get("dataset") != self.dataset or each.get("subset") != found[0].get("subset"):
                own = f"{each.get('dataset')} with subset {each.get('subset')}"
                raise ValueError(f"arms.{label}: got {run} on {own}, expected {self.dataset} and one subset for all")
        return None if "subset" not in found[0] else Subset(**found[0]["subset"])

    def _verdict(
        self,
        found: Trainings,
        tested: Mapping[str, Sequence[float]],
        *,
        frozen: str,
        sizes: Mapping[str, int | None],
    ) -> Verdict:
        full = self.pairs[0][0]
        difference = gap(tested[frozen], tested[full])
        if difference is None:
            return "undecided"
        there = [collapse_of(_until(curve, self.at)) is not None for curve in found.curves[full]]
        subsets = {label: size for label, size in sizes.items() if size is not None}
        smallest = min(subsets, key=lambda label: subsets[label], default=full)
        at_the_end = bool(subsets) and found.collapsed(smallest) == len(self.arms[smallest])
        if difference < -2 and (all(there) or at_the_end):
            return "confirmed"
        return "contradicted" if difference > 2 and not any(there) else "not confirmed"

    def _neighbours(
        self, files: Mapping[str, Sequence[Path]], subsets: Mapping[str, Subset | None]
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Return mean distances to the nearest training image, and to the nearest unseen one, of the last snapshots."""
        from onestep.checkpoints.digests import checked
        from onestep.data._subset import nested_order
        from onestep.data.image_zip import ImageZip

        real = read_arrays(files["real"][0], ["features"]).arrays["features"]
        labels = ImageZip(source=checked(files["images"][0])).labels()
        nearest: dict[str, float] = {}
        unseen: dict[str, float] = {}
        for label, runs in self.arms.items():
            subset = subsets[label] or Subset(images=len(real))
            order = nested_order(labels, seed=subset.seed)
            trained, rest = order[: subset.images], order[subset.images : 2 * subset.images]
            generated = [_last_features(files[f"features.{run}"])[:_MOST] for run in runs]
            own = [_distances(each, real[trained]) for each in generated]
            nearest |= described(f"{label}.nearest", spread(float(each.mean()) for each in own))
            if len(rest) == len(trained):
                other = [_distances(each, real[rest]) for each in generated]
                nearer = [float((a < b).mean()) for a, b in zip(own, other, strict=True)]
                nearest |= described(f"{label}.nearer_to_training", spread(nearer))
                unseen[f"{label}.nearest"] = statistics.fmean(float(each.mean()) for each in other)
                unseen[f"{label}.nearer_to_training"] = 0.5
        return nearest, unseen


def _best_frozen(pair: Sequence[str], found: Trainings) -> str:
    """Return the label of a pair's frozen arm with the least mean last value."""
    return min(pair[1:], key=lambda label: statistics.fmean(found.last(label)))


def _until(curve: Curve, images: int) -> Curve:
    """Return the beginning of a curve up to a snapshot. ValueError: There is none at this number of images."""
    if images not in curve.images:
        raise ValueError(f"at: got {images}, expected a snapshot of {curve.run}: {', '.join(map(str, curve.images))}")
    end = curve.images.index(images) + 1
    return Curve(run=curve.run, images=curve.images[:end], blocks=curve.blocks[:end])


def _last_features(paths: Sequence[Path]) -> np.ndarray:
    """Return the features [N, D] of the last of a run's snapshots."""
    models = {path: parse_model(str(read_arrays(path, ()).about.get("subject", {}).get("model"))) for path in paths}
    last = max(paths, key=lambda path: getattr(models[path], "images", 0))
    return read_arrays(last, ["features"]).arrays["features"]


def _distances(images: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the distance of each row of `images` [N, D] to the nearest row of `others` [M, D], float64 [N]."""
    import numpy as np

    centre = others.mean(axis=0, dtype=np.float64)
    rows, columns = images.astype(np.float64) - centre, others.astype(np.float64) - centre
    squares = (columns**2).sum(axis=1)
    parts = [
        ((part**2).sum(axis=1)[:, None] - 2 * part @ columns.T + squares).min(axis=1)
        for part in np.array_split(rows, max(1, len(rows) // 512))
    ]
    nearest: np.ndarray = np.sqrt(np.maximum(np.concatenate(parts), 0))
    return nearest


def _draw(
    figure: Figure,
    *,
    pairs: Sequence[Sequence[str]],
    found: Trainings,
    at: int,
    sizes: Mapping[str, int | None],
    label: str,
) -> None:
    """Draw the curves on the whole dataset, and the last values over the size of the subset."""
    from matplotlib.ticker import NullLocator

    figure.set_size_inches(7.0 if pairs[1:] else 4.6, 3.0)
    panels = figure.subplots(1, 2 if pairs[1:] else 1, squeeze=False)[0]
    draw_curves(panels[0], {each: found.curves[each] for each in pairs[0]}, label=label)
    panels[0].axvline(at, color="0.5", linestyle=":", linewidth=1)
    if not pairs[1:]:
        return
    # The whole dataset is drawn to the right of its subsets.
    whole = 5 * max((size for size in sizes.values() if size is not None), default=1)
    ordered = sorted(pairs, key=lambda pair: sizes[pair[0]] or whole)
    ticks = [sizes[pair[0]] or whole for pair in ordered]
    for is_frozen in (False, True):
        shown = [_best_frozen(pair, found) if is_frozen else pair[0] for pair in ordered]
        over = [spread(found.last(each)) for each in shown]
        panels[1].errorbar(
            ticks,
            [each.mean for each in over],
            yerr=[min(each.deviation or 0.0, 0.9 * each.mean) for each in over],
            marker="o",
            color="C2" if is_frozen else "C0",
            label="frozen" if is_frozen else "all trained",
            capsize=1.5,
        )
    panels[1].set_xscale("log")
    panels[1].set_yscale("log")
    few_ticks(panels[1].yaxis, [value for pair in pairs for arm in pair for value in found.last(arm)])
    panels[1].set_xticks(ticks, ["all" if sizes[pair[0]] is None else str(sizes[pair[0]]) for pair in ordered])
    panels[1].xaxis.set_minor_locator(NullLocator())
    panels[1].set_xlabel("images of the dataset")
    panels[1].set_ylabel(label)
    panels[1].legend()
