"""Evaluation outside the pipeline: features and metrics of given images against a given reference, into one JSON."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tabulate import tabulate
from torch import Tensor

from onestep import components
from onestep.archive import array_names
from onestep.checkpoints.published_weights import read_published_tensor
from onestep.data._pixels import decode
from onestep.data._sources import EXTENSIONS, open_source, pictures
from onestep.evaluation.extraction import (
    BATCH,
    TENSORS,
    ExtractedFeatures,
    FeatureNetwork,
    check_images,
    extract,
    joined,
    read_pixels,
)
from onestep.evaluation.measurement import Reference, call_metric, device_of, inputs_of, precision_of, read_reference
from onestep.files import read_json, regular_file, write_json
from onestep.metrics import Metric
from onestep.progress import patient

_STATISTICS = frozenset({"mu", "mu_s"})
_IMAGES = frozenset({"arr_0", "pixels"})


@dataclass(frozen=True, kw_only=True, eq=False)
class NamedMetric:
    """A metric and its config block."""

    metric: Metric
    options: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Its name in the family."""
        return self.options["name"]

    @property
    def needs_features(self) -> bool:
        """Whether it reads what a feature network computes."""
        return bool(set(self.metric.inputs) - {"pixels", "real_pixels"})

    @property
    def compares(self) -> bool:
        """Whether it compares with real images."""
        return bool({"real", "real_pixels"} & set(self.metric.inputs))


def built_metrics(blocks: Sequence[Mapping[str, Any]]) -> list[NamedMetric]:
    """Return the metrics of config blocks. ValueError: There is none, or an option of one is missing."""
    found = []
    for block in blocks:
        name = block.get("name")
        try:
            found.append(NamedMetric(metric=components.build("metrics", block), options=block))
        except (ValueError, TypeError, KeyError) as error:
            what = str(error).removeprefix(f"{name}: ")
            option = next(iter(components.describe("metrics", name).parameters), "") if isinstance(name, str) else ""
            fix = f"""Fix: give its options, such as --metrics '{{"name": "{name}", "{option}": 10}}'"""
            raise ValueError(f"--metrics: {name}: {what}. {fix}") from error
    return found


def announced(
    metrics: Sequence[NamedMetric], *, network: FeatureNetwork | None, images: Path, reference: Path | None
) -> Iterator[str]:
    """Yield what will be read and computed, a line each, before any work. ValueError: The parts do not fit together."""
    _check(metrics, network=network, reference=reference)
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    facts = {
        "images": images,
        "reference": reference if any(chosen.compares for chosen in metrics) else None,
        "features": None if network is None else f"{_block(network.options)} with {network.weights}",
        "metrics": ", ".join(_block(chosen.options) for chosen in metrics),
        "device": where,
    }
    yield from tabulate([(name, str(value)) for name, value in facts.items() if value], tablefmt="plain").splitlines()
    if reference is not None and facts["reference"] is None:
        yield f"{reference} is not read: no metric compares with real images."


def _block(options: Mapping[str, Any]) -> str:
    """Return a component with its options in one line: `inception_score (splits 10)`."""
    others = ", ".join(f"{key} {value}" for key, value in options.items() if key != "name")
    return f"{options['name']}{f' ({others})' if others else ''}"


def value_table(path: Path, metrics: Sequence[NamedMetric]) -> str:
    """Return the values in a file of `write_evaluation` as a table: the quantity, the value, which direction is better.

    A score has its number of images below it, as numbers of different numbers of images are not compared.
    """
    found = read_json(path, {"values": {str: float}, "images": int})
    better = {name: direction for chosen in metrics for name, direction in chosen.metric.values.items()}
    rows = [(name, f"{value:.6g}", better.get(name, "")) for name, value in found["values"].items()]
    shown = tabulate(
        rows,
        headers=["quantity", "value", "better"],
        tablefmt="simple",
        disable_numparse=True,
        colalign=("left", "right", "left"),
    )
    return f"{shown}\n{found['images']:,} images"


def write_evaluation(
    network: FeatureNetwork | None,
    metrics: Sequence[NamedMetric],
    *,
    images: Path,
    reference: Path | None,
    output: Path,
) -> dict[str, float]:
    """Measure images, each metric once, write the values and what they were computed from, and return the values.

    `images` and `reference` are paths that `iter_images` reads; a reference may also be features from `onestep extract`
    or published statistics (.npz with `mu` and `sigma`, or .pkl of EDM2). From a file with both images and statistics,
    each metric uses the statistics if it accepts them. No network is needed if each metric reads pixels.

    ValueError: Images, reference and metrics do not fit together.
    """
    check_inputs(images, reference)
    _check(metrics, network=network, reference=reference)
    about = {} if network is None else network.about()
    generated = _extracted(network, images)
    real = None if reference is None else _Real(reference, network=network, about=about, like=generated)
    values: dict[str, float] = {}
    facts: dict[str, Any] = {}
    device: dict[str, str] = {}
    for chosen in metrics:
        available = inputs_of(generated.arrays[0] if network else {})
        if real is not None and chosen.compares:
            compared = real.of(chosen.metric)
            facts[chosen.name], available["real"] = dict(compared.facts), compared.real
        for name, path in (("pixels", images), ("real_pixels", reference)):
            if path is not None and name in chosen.metric.inputs:
                available[name] = joined(list(_read(path))).numpy()
        device |= device_of(chosen.metric, available)
        try:
            values |= call_metric(chosen.metric, name=chosen.name, available=available)
        except ValueError as error:
            raise _at(images, error) from error
    found = {
        "source": str(images),
        "images": generated.images,
        "pixels_sha256": generated.pixels_sha256,
        "metric": [dict(chosen.options) for chosen in metrics],
        "values": values,
        "features": about.get("network"),
        "feature_weights_sha256": about.get("weights_sha256"),
        "precision": precision_of(about),
        "reference": facts,
        **device,
    }
    if network is not None and (arithmetic := network.arithmetic()):
        found["arithmetic"] = {"features": arithmetic}
    write_json(output, found)
    return values


def check_inputs(images: Path, reference: Path | None) -> None:
    """Check that the files can be read, the reference first, before anything is computed. ValueError: One cannot."""
    for path in filter(None, (reference, images)):
        check_images(path)


def _check(metrics: Sequence[NamedMetric], *, network: FeatureNetwork | None, reference: Path | None) -> None:
    names = [chosen.name for chosen in metrics]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"--metrics: got {', '.join(names) or 'none'}, expected at least one, each once")
    for chosen in metrics:
        if chosen.compares and reference is None:
            fix = "Fix: --reference FOLDER, .zip or .npz"
            raise ValueError(
                f"--reference: got none, expected real images or their statistics for {chosen.name}. {fix}"
            )
        if network is None and chosen.needs_features:
            fix = "Fix: --features inception --weights FILE"
            raise ValueError(f"--features and --weights: got none, expected a feature network for {chosen.name}. {fix}")


def _read(path: Path) -> Iterator[Tensor]:
    """Yield images as `iter_images` does, at most one batch at a time, with a progress bar."""
    with patient(name=str(path)) as progress:
        for images in iter_images(path):
            for batch in images.split(BATCH):
                yield batch
                progress.update(len(batch))


def _extracted(network: FeatureNetwork | None, images: Path) -> ExtractedFeatures:
    try:
        return extract([] if network is None else [network.extractor], _read(images))
    except ValueError as error:
        raise _at(images, error) from error


def _at(path: Path, error: ValueError) -> ValueError:
    text = str(error)
    return ValueError(text if text.startswith(str(path)) else f"{path}: {text}")


class _Real:
    """A reference; its images, if a metric needs them, are extracted once."""

    def __init__(
        self, path: Path, *, network: FeatureNetwork | None, about: Mapping[str, Any], like: ExtractedFeatures
    ) -> None:
        self._path, self._network, self._about, self._like = path, network, about, like

    def of(self, metric: Metric) -> Reference:
        """Return features or statistics; for a metric of pixels only, the identity of the images."""
        file = {"file": self._path.name}
        statistics = metric.takes_statistics and bool(self._names & _STATISTICS)
        if "real" in metric.inputs and self._names and (statistics or not self._names & _IMAGES):
            found = read_reference(
                self._path,
                width=self._like.arrays[0]["features"].shape[1],
                weights_sha256=self._about["weights_sha256"],
                precision=precision_of(self._about),
                takes_statistics=metric.takes_statistics,
            )
            return Reference(real=found.real, facts=file | {k: v for k, v in found.facts.items() if k != "input"})
        extracted = self._features if "real" in metric.inputs else _extracted(None, self._path)
        features = extracted.arrays[0]["features"] if extracted.arrays else np.empty((0, 0))
        facts = {"images": extracted.images, "sha256": extracted.pixels_sha256}
        return Reference(real=features, facts=file | facts)

    @functools.cached_property
    def _names(self) -> frozenset[str]:
        """The names of the arrays in an .npz, or of the statistics in a .pkl; empty for another kind of file."""
        if self._path.suffix == ".pkl":
            return _STATISTICS
        if self._path.suffix != ".npz":
            return frozenset()
        return array_names(self._path)

    @functools.cached_property
    def _features(self) -> ExtractedFeatures:
        return _extracted(self._network, self._path)


def iter_images(path: Path) -> Iterator[Tensor]:
    """Yield images, uint8 [B, C, H, W]; pictures one at a time in the order of their names.

    `path` is a folder, a zip (such as EDM's datasets) or a tar of pictures of one size; an .npz with `arr_0` or
    `pixels`, uint8 [N, H, W, C]; or a .pt with a tensor, uint8 [N, C, H, W]. C is 1 (grey) or 3 (RGB).

    ValueError: There are no images, or one of them is not as described; the message contains its name.
    """
    if path.suffix not in (".npz", *TENSORS):
        yield from _pictures(path)
        return
    regular_file(path)
    pixels = torch.from_numpy(read_pixels(path)) if path.suffix == ".npz" else read_published_tensor(path)
    if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[1] not in (1, 3) or not len(pixels):
        found = f"{str(pixels.dtype).removeprefix('torch.')} {list(pixels.shape)}"
        raise ValueError(f"{path}: got {found}, expected at least one image, uint8 [N, C, H, W] with C = 1 or 3")
    yield pixels


def _pictures(path: Path) -> Iterator[Tensor]:
    """Yield the pictures of a folder or archive, uint8 [1, C, H, W]."""
    source = open_source(path)
    entries = sorted(pictures(source).pictures, key=lambda entry: entry.name)
    if not entries:
        raise ValueError(f"{path}: got no pictures, expected files that end in {', '.join(sorted(EXTENSIONS))}")
    expected = None
    for entry in entries:
        try:
            if entry.refused is not None:
                raise ValueError(entry.refused)
            pixels = decode(source.read(entry))
        except ValueError as error:
            raise ValueError(f"{path}: {entry.name}: {error}") from error
        size = f"{pixels.shape[1]} x {pixels.shape[0]}"
        expected = expected or size
        if size != expected:
            raise ValueError(
                f"{path}: {entry.name}: got {size} pixels, expected {expected} as in "
                f"{entries[0].name}. Fix: resize the pictures first, because the method changes every metric"
            )
        yield torch.from_numpy(np.atleast_3d(pixels)).permute(2, 0, 1)[None]
