"""Which spatial frequencies does each block change from step to step? (D_FFT, arXiv:2506.09376, figure 4B)."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from onestep.studies import Findings, Verdict
from onestep.studies._arms import spearman
from onestep.studies._layers import (
    StudyOfBlocks,
    agreed,
    block_axis,
    over_trainings,
    places,
)

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

    from onestep.studies._hooks import Block
    from onestep.studies._spectra import Spectrum

__all__ = ["FrequencyResponse"]

_INPUT, _IMAGE = "input", "image"
_BOUND, _SHARE, _LEAST_SIDE = 0.5, 2 / 3, 8
_VARIANTS = ("energy", "log")


@dataclass(frozen=True, kw_only=True)
class FrequencyResponse(StudyOfBlocks):
    """The spectrum of the change of each block's output, along the trajectory of a teacher.

    Attributes:
        batch: Images that pass through a network at once; the maps of one step of a batch are kept.
    """

    question: ClassVar[str] = "From step to step, the output of blocks changes first at low, then at high frequencies."
    rule: ClassVar[str] = (
        "A trend is Spearman's correlation of the step with the centroid of the share of the change in each frequency "
        f"band. Confirmed: the trend of the denoised image is above {_BOUND:g}, so are those of at least two thirds of "
        f"the decoder's blocks of {_LEAST_SIDE} pixels or more, and the correlation of a block's resolution with its "
        f"mean centroid, in cycles per image, is above {_BOUND:g}; all of it for the energy and for the logarithm of "
        "the amplitude, and not for an untrained network. Contradicted: the trends of the image and of two thirds of "
        f"these blocks are below -{_BOUND:g}, for both. Not confirmed: otherwise, or trainings of the teacher differ. "
        "Undecided: fewer trainings of the teacher than `least_trainings`, or no such block."
    )
    choices: ClassVar[tuple[str, ...]] = (
        "The paper names D_FFT(O_t, O_t-1) without a formula. Here it is the mean over images, channels and a ring of "
        "wave numbers of |FFT2(O_i - O_(i-1))|^2, O_i being the output of a block at the first evaluation of step i of "
        "the deterministic sampler, from the same noise; rings are whole wave numbers up to H/2, without the corners.",
        "The heat maps show the share of each ring in the change of one step. Scaled over the steps instead, each ring "
        "of each network, trained or not, is largest where the input turns from noise to image.",
        "As a second variant, `log`, the change is |log A_i - log A_(i-1)| of the ring mean A of the amplitude, where "
        "each ring counts once.",
        "Beside the untrained network, `input` is what the network gets, c_in x: a block that passes it through would "
        "have its trend. The untrained network is followed on its own trajectory; weights that are initialised with "
        "zeros are drawn from N(0, 1 / fan-in).",
        "`distance` is the total variation between the shares of a block's output at the first noise level and the "
        "teacher's shares averaged over all steps, as the median over blocks; `closer` is the share of blocks in which "
        "that of a generator is below the teacher's own.",
        "Of a network without a decoder, all blocks count.",
        "The part of the rule on the untrained network, and that on `contradicted` for blocks, are ours.",
    )

    def conclude(self, files: Mapping[str, Sequence[Path]]) -> Findings:
        """Return spectra by block and step, centroids and trends, and the distances of generators."""
        import numpy as np

        from onestep.studies._hooks import load, untrained

        paths = {label: [files[model][0] for model in models] for label, models in self.arms.items()}
        teachers = [self._followed(load(path), path) for path in paths[self.teacher]]
        controls = [self._followed(untrained(path, seed=index), path) for index, path in enumerate(paths[self.teacher])]
        first = teachers[0]
        students = {
            label: [self._followed(load(path), path, levels=first.levels[:1], like=first) for path in group]
            for label, group in paths.items()
            if label != self.teacher
        }
        arrays = places(first.levels, first.blocks)
        for who, group in ((self.teacher, teachers), ("untrained", controls)):
            for place in first.spectra:
                arrays |= dict(_arrays(f"{who}.{place}", [each.spectra[place] for each in group]))
        for label, group in students.items():
            for place in first.spectra:
                found = [each.spectra[place].output_share[0] for each in group]
                arrays[f"{label}.{place}.output_share"] = np.stack(found)
        own, theirs = [_described(each) for each in teachers], [_described(each) for each in controls]
        verdicts = [verdict(one, other) for one, other in zip(own, theirs, strict=True)]
        numbers = over_trainings(own) | over_trainings([_distances(each, each) for each in teachers])
        for label, group in students.items():
            over = over_trainings([_distances(each, first) for each in group])
            numbers |= {f"{label}.{key}": value for key, value in over.items()}
        draw = functools.partial(_draw, arrays=arrays, teacher=self.teacher, students=tuple(students))
        return Findings(
            arrays=arrays,
            numbers=numbers,
            control=over_trainings(theirs),
            verdict=agreed(verdicts, least=self.least_trainings),
            draw=draw,
        )

    def _followed(
        self, network: Any, path: Path, *, levels: Sequence[float] = (), like: _Followed | None = None
    ) -> _Followed:
        """Observe a network along its trajectory, or with noise alone at some levels."""
        from onestep.studies import _hooks

        blocks = _hooks.blocks_of(network, source=path, like=() if like is None else like.blocks)
        maps = _Maps(blocks=blocks, steps=len(levels) or self.steps)
        shown: dict[str, Any] = {"seeds": self.block, "batch": self.batch, "see": maps.see}
        if levels:
            _hooks.at_levels(network, blocks, levels=levels, **shown)
        else:
            levels = _hooks.trajectory(network, blocks, sampler=self.sampler(), **shown)
        return _Followed(blocks=blocks, levels=tuple(levels), spectra=maps.spectra)


@dataclass(frozen=True, kw_only=True)
class _Followed:
    """What was seen of a network: the spectrum of its input, of each block by name, and of the denoised image."""

    blocks: tuple[Block, ...]
    levels: tuple[float, ...]
    spectra: Mapping[str, Spectrum]


class _Maps:
    """The power of all places of a network."""

    def __init__(self, *, blocks: Sequence[Block], steps: int) -> None:
        from onestep.studies._spectra import PowerMaps

        self._names = [block.label for block in blocks]
        self._maps = {name: PowerMaps(steps=steps) for name in (_INPUT, *self._names, _IMAGE)}

    def see(self, step: int, kind: str, block: int, value: Tensor) -> None:
        """Add what `onestep.studies._hooks` shows."""
        from onestep.studies._hooks import as_map

        if kind != "layer":
            names = {"input": _INPUT, "denoised": _IMAGE}
            self._maps[names.get(kind) or self._names[block]].see(step, as_map(value))

    @property
    def spectra(self) -> dict[str, Spectrum]:
        """The spectra by place."""
        return {name: maps.spectrum for name, maps in self._maps.items()}


def _arrays(name: str, group: Sequence[Spectrum]) -> Iterator[tuple[str, np.ndarray]]:
    import numpy as np

    from onestep.studies._spectra import centroids, high_shares

    for key in ("d_fft", "share", "output_share", "log_change"):
        yield f"{name}.{key}", np.stack([getattr(each, key) for each in group])
    yield f"{name}.centroid", np.stack([centroids(each.share) for each in group])
    yield f"{name}.high_share", np.stack([high_shares(each.share) for each in group])


def _centroids(spectrum: Spectrum, variant: str) -> np.ndarray:
    """Return the centroid of each step's change, in shares of H/2, [T - 1]."""
    from onestep.studies._spectra import centroids, change_shares

    return centroids(spectrum.share if variant == "energy" else change_shares(spectrum.log_change))


def _trend(spectrum: Spectrum, variant: str) -> float | None:
    found = list(map(float, _centroids(spectrum, variant)))
    return spearman(range(len(found)), found)


def _deciding(blocks: Sequence[Block]) -> list[Block]:
    """Return the blocks of the decoder, or of a network without one, that have enough pixels."""
    decoder = [block for block in blocks if block.part == "decoder"] or list(blocks)
    return [block for block in decoder if block.resolution >= _LEAST_SIDE]


def _described(network: _Followed) -> dict[str, float | None]:
    """Return the trends of a network, for both variants."""
    numbers: dict[str, float | None] = {}
    for variant in _VARIANTS:
        suffix = "" if variant == "energy" else f".{variant}"
        for place in (_IMAGE, _INPUT):
            numbers[f"{place}.trend{suffix}"] = _trend(network.spectra[place], variant)
        trends = [_trend(network.spectra[block.label], variant) or 0.0 for block in _deciding(network.blocks)]
        if trends:
            numbers[f"decoder.trend.median{suffix}"] = statistics.median(trends)
            numbers[f"decoder.trend.rising{suffix}"] = statistics.fmean(each > _BOUND for each in trends)
            numbers[f"decoder.trend.falling{suffix}"] = statistics.fmean(each < -_BOUND for each in trends)
        cycles = [
            float(_centroids(network.spectra[block.label], variant).mean()) * block.resolution / 2
            for block in network.blocks
        ]
        numbers[f"resolution.trend{suffix}"] = spearman([block.resolution for block in network.blocks], cycles)
    return numbers


def _distances(network: _Followed, teacher: _Followed) -> dict[str, float | None]:
    """Return how far the shares of outputs at the first noise level are from the teacher's, averaged over its steps."""
    from onestep.studies._spectra import total_variation

    def distance(of: _Followed, place: str) -> float:
        pooled = teacher.spectra[place].output_share.mean(axis=0)
        return float(total_variation(of.spectra[place].output_share[0], pooled))

    names = [block.label for block in network.blocks if block.resolution >= 4]
    numbers: dict[str, float | None] = {f"{_IMAGE}.distance": distance(network, _IMAGE)}
    if names:
        numbers["distance"] = statistics.median(distance(network, name) for name in names)
        if network is not teacher:
            closer = (distance(network, name) < distance(teacher, name) for name in names)
            numbers["closer"] = statistics.fmean(closer)
    return numbers


def verdict(own: Mapping[str, float | None], control: Mapping[str, float | None]) -> Verdict:
    """Return the verdict on one network, from its numbers and those of the untrained one."""
    if own.get("decoder.trend.rising") is None:
        return "undecided"
    if _rises(own) and not _rises(control):
        return "confirmed"
    falls = all(_below(own, suffix) for suffix in ("", ".log"))
    return "contradicted" if falls else "not confirmed"


def _rises(numbers: Mapping[str, float | None]) -> bool:
    for suffix in ("", ".log"):
        image, resolution = (numbers[f"{name}.trend{suffix}"] or 0.0 for name in (_IMAGE, "resolution"))
        rising = numbers[f"decoder.trend.rising{suffix}"] or 0.0
        if min(image, resolution) <= _BOUND or rising < _SHARE:
            return False
    return True


def _below(numbers: Mapping[str, float | None], suffix: str) -> bool:
    falling = numbers[f"decoder.trend.falling{suffix}"] or 0.0
    return (numbers[f"{_IMAGE}.trend{suffix}"] or 0.0) < -_BOUND and falling >= _SHARE


def _draw(figure: Figure, *, arrays: Mapping[str, np.ndarray], teacher: str, students: Sequence[str]) -> None:
    """Heat maps of the shares of each block, and below the trend of each, trained and untrained."""
    places = [_INPUT, *arrays["layers"], _IMAGE]
    columns = min(len(places), 6)  # more would have titles that overlap
    rows = math.ceil(len(places) / columns)
    height = 2.9 if students else 2.1
    figure.set_size_inches(7.2, 0.9 * rows + 0.4 + height)
    upper, lower = figure.subfigures(2, 1, squeeze=False, height_ratios=(0.9 * rows + 0.4, height))[:, 0]
    panels = upper.subplots(rows, columns, squeeze=False).ravel()
    shares = [arrays[f"{teacher}.{place}.share"].mean(axis=0) for place in places]
    image = None
    for axes, place, share in zip(panels, places, shares, strict=False):
        steps, rings = share.shape
        # In units of a flat spectrum, so that maps with different numbers of rings compare.
        image = axes.imshow(
            share.T * rings,
            origin="lower",
            aspect="auto",
            cmap="magma",
            vmin=0,
            vmax=4,
            interpolation="nearest",
            extent=(0.5, steps + 0.5, 0.5, rings + 0.5),
        )
        axes.grid(visible=False)
        axes.set_title(place, fontsize=6, fontweight="normal", pad=3)
        axes.tick_params(labelsize=5.5, length=2, pad=1)
        axes.set_yticks([1, rings] if rings > 1 else [1])
        axes.set_xticks([1, steps])
    for axes in panels[len(places) :]:
        axes.set_visible(False)
    upper.supxlabel(f"step of the trajectory of {teacher}, from noise to image", fontsize=7)
    upper.supylabel("cycles per image", fontsize=7)
    if image is not None:
        bar = upper.colorbar(image, ax=list(panels), aspect=30, pad=0.01, extend="max")
        bar.set_label("share of the change, flat = 1")
        bar.outline.set_visible(False)
    under = lower.subplots(2 if students else 1, 1, sharex=True, squeeze=False)[:, 0]
    _draw_trends(under[0], arrays, places=places, teacher=teacher)
    if students:
        _draw_distances(under[1], arrays, places=places, teacher=teacher, students=students)
    for axes in under:
        block_axis(axes, places, ["", *arrays["part"], " "])


def _draw_trends(axes: Axes, arrays: Mapping[str, np.ndarray], *, places: Sequence[str], teacher: str) -> None:
    """The trend of each place, trained and untrained."""
    import numpy as np

    for who, colour, marker in ((teacher, "C0", "o"), ("untrained", "C1", "s")):
        centroid = [arrays[f"{who}.{place}.centroid"] for place in places]
        trends = [[spearman(range(len(row)), list(map(float, row))) for row in each] for each in centroid]
        points = np.array(trends, dtype=np.float64).T
        for order, row in enumerate(points):
            label = None if order else who
            axes.plot(row, marker, color=colour, markersize=3.5, linestyle="none", label=label)
    for level in (-_BOUND, _BOUND):
        axes.axhline(level, color="0.5", linewidth=0.8, linestyle="--")
    axes.axhline(0, color="0.5", linewidth=0.5)
    axes.set_ylim(-1.05, 1.05)
    axes.set_ylabel("trend of the centroid")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


def _draw_distances(
    axes: Axes, arrays: Mapping[str, np.ndarray], *, places: Sequence[str], teacher: str, students: Sequence[str]
) -> None:
    """Total variation of the shares at the first noise level from the teacher's shares over all steps."""
    from onestep.studies._spectra import total_variation

    own = [arrays[f"{teacher}.{place}.output_share"][0] for place in places]
    pooled = [share.mean(axis=0) for share in own]
    bars = [float(total_variation(share[0], pool)) for share, pool in zip(own, pooled, strict=True)]
    axes.bar(range(len(bars)), bars, color="C1", alpha=0.3, label=teacher)
    for index, label in enumerate(students):
        found = [arrays[f"{label}.{place}.output_share"] for place in places]
        for order in range(len(found[0])):
            points = [total_variation(share[order], pool) for share, pool in zip(found, pooled, strict=True)]
            style: dict[str, Any] = {"color": f"C{(index + 2) % 8}", "markersize": 3.5, "linestyle": "none"}
            axes.plot(points, "o^Dvs"[index % 5], label=None if order else label, **style)
    axes.set_ylim(bottom=0)
    axes.set_ylabel(f"distance at {arrays['sigma'][0]:g}")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
