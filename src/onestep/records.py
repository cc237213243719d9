"""Records that several stages read: measurements, summaries, logs. Each is checked for its shape and its identity."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from onestep.files import parse_json, read_json, read_text, regular_file
from onestep.models import parse_model
from onestep.results import identity_at
from onestep.run_record import RECORD, read_run_record
from onestep.shapes import misfit

Content = TypeVar("Content")

_MEASUREMENT = {
    "values": {str: float},
    **dict.fromkeys(("model?", "sampler?", "seeds?", "source?"), str),
    **dict.fromkeys(("better?", "options?"), dict),
    "arithmetic?": {str: {"precision": str, "device": str}},  # of the images, the features, the reference's features
}
_SUMMARY = {
    **dict.fromkeys(("run", "spec", "code", "device", "torch", "python"), str),
    **dict.fromkeys(("images_seen", "parameters", "trainable", "restarts", "world_size"), int),
    **dict.fromkeys(("seconds", "frozen_share"), float),
    "codes": [str],
    "arithmetic": dict,
    "networks": {str: int},  # parameters by role; earlier versions did not count them
}
_WORK = {
    "run": str,
    **dict.fromkeys(("batch", "processes"), int),
    **dict.fromkeys(("flops_per_image", "flops_before_the_first_step"), float),
    "passes_per_image": {str: float},
    "phases": {str: {"every": int, "flops_per_image": float, "passes": {str: float}, "units": {str: float}}},
}
_NUMBERS = {str: (float, None)}
_LOG_RECORD = {
    "images_seen": float,
    **dict.fromkeys(("losses?", "observed?", "controls?"), _NUMBERS),
    **dict.fromkeys(("images_per_second?", "memory_mib?", "seconds?", "non_finite_share?"), (float, None)),
    **dict.fromkeys(("non_finite?", "processes?"), int),
    "time?": str,  # UTC, ISO 8601; earlier versions wrote no time, seconds and processes
}
_LONGEST_LINE = 2**20  # bytes of a record of a log
_LONGEST_CONFIG = 2**20

COMPARED = ("features", "feature_weights_sha256", "precision", "reference", "images")
"""Facts of two measurements that are equal where their numbers are put together; also `options`, if both have them."""


def read_measurement(path: Path) -> dict[str, Any]:
    """Read the numbers of one seed block, or of `onestep evaluate`.

    ValueError: The file is no measurement, has a number that is not finite, or is that of another block.
    """
    record: dict[str, Any] = read_json(path, _MEASUREMENT)
    place = identity_at(path)
    if found := {key: record[key] for key, expected in place.items() if record.get(key, expected) != expected}:
        shown = ", ".join(found.values())
        expected = ", ".join(place[key] for key in found)
        raise ValueError(f"{path}: got numbers of {shown}, expected {expected}. Fix: delete it to measure it again")
    return record


def read_value(path: Path, *, value: str) -> float:
    """Return one number of a measurement. ValueError: As `read_measurement`, or it has no such number."""
    return value_of(read_measurement(path), path=path, value=value)


def value_of(measurement: Mapping[str, Any], *, path: Path, value: str) -> float:
    """Return one number of a measurement that was read from `path`. ValueError: It has no such number."""
    values = measurement["values"]
    if value not in values:
        raise ValueError(f"{path}: got {', '.join(values)}, expected {value!r}. Fix: delete it to measure it again")
    return float(values[value])


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Return the facts that make the numbers of two measurements not comparable."""
    found = [fact for fact in COMPARED if fact_of(one, fact) != fact_of(other, fact)]
    both = one.get("options") is not None and other.get("options") is not None
    return found + (["options"] if both and one["options"] != other["options"] else [])


def fact_of(measurement: Mapping[str, Any], fact: str) -> Any:
    """Return a fact of a measurement; without a record the precision is float32.

    Of generated images in the place of a reference, the family of their run, their sampler and their number: the member
    and the seeds are of each measurement.
    """
    if fact == "precision":
        return measurement.get(fact) or "float32"
    found = measurement.get(fact)
    if fact != "reference" or not isinstance(found, Mapping) or "model" not in found:
        return found
    family = parse_model(str(found["model"])).name.partition(".")[0]
    return {"family": family, "sampler": found.get("sampler"), "images": found.get("images")}


def images_in(measurement: Mapping[str, Any]) -> str:
    """Return the precision in which measured images were computed; without a record it is float32."""
    return str(measurement.get("arithmetic", {}).get("images", {}).get("precision", "float32"))


def read_summary(path: Path, *, run: str, keys: Sequence[str]) -> dict[str, Any]:
    """Read a run's summary.json, which has at least these keys. ValueError: It is damaged, or that of another run."""
    shape = {**{f"{key}?": kind for key, kind in _SUMMARY.items() if key not in keys}, **{k: _SUMMARY[k] for k in keys}}
    found: dict[str, Any] = read_json(path, shape)
    if found.get("run", run) != run:
        raise ValueError(f"{path}: got the summary of run {found['run']}, expected {run}. Fix: publish the run again")
    return found


def read_work(path: Path, *, run: str) -> dict[str, Any]:
    """Read what a run computes for each image, as `bench work` counts it. ValueError: As `read_summary`."""
    found: dict[str, Any] = read_json(path, _WORK)
    if found["run"] != run:
        raise ValueError(f"{path}: got the work of run {found['run']}, expected {run}. Fix: delete it to count again")
    return found


def read_run_config(path: Path, *, run: str | None = None) -> tuple[str, dict[str, Any]]:
    """Return the text of a run.yaml and its mapping.

    ValueError: It is none, that of another run than `run`, or not that of the training in its folder.
    """
    text = read_text(path, most=_LONGEST_CONFIG)
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        document: Any = None if root is None else loader.construct_document(root)
        keys = [key.value for key, _ in root.value] if isinstance(root, yaml.MappingNode) else []
        if twice := next((key for key in keys if keys.count(key) > 1), None):
            raise ValueError(f"the key {twice!r} is there twice")
    except Exception as error:  # its constructors raise anything
        raise ValueError(
            f"{path}: got no YAML ({' '.join(str(error).split())[:200]}). Fix: resolve it again"
        ) from error
    if found := misfit(document, {"run": str, "objective?": {"name": str}, "dataset?": str, "teacher?": (str, None)}):
        raise ValueError(f"{path}: {found}. Fix: resolve it again")
    if run is not None and document["run"] != run:
        raise ValueError(f"{path}: got run {document['run']!r}, expected {run!r}. Fix: resolve it again")
    record = read_run_record(path.parent) if (path.parent / RECORD).exists() else None
    if record is not None and record.config and dict(record.config) != document:
        found = f"{path}: got another configuration than {RECORD} records of the training"
        raise ValueError(f"{found}. Fix: resolve it again, and train the run that was edited")
    return text, document


def log_misfit(record: Any) -> str | None:
    """Return how a record of a training log deviates from its shape."""
    return misfit(record, _LOG_RECORD)


def iter_log(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a training log, of one JSON record per line. ValueError: A line is none."""
    seen = -1.0
    with open(regular_file(path), "rb") as file:
        number = 0
        while line := file.readline(_LONGEST_LINE):
            number += 1
            try:
                record = parse_json(line.decode())
                found = log_misfit(record) or (
                    "got no more images than before" if record["images_seen"] <= seen else None
                )
            except ValueError as error:
                found = f"got no JSON ({error})"
            if found is not None:
                raise ValueError(f"{path}, line {number}: {found}. Fix: train the run again")
            seen = record["images_seen"]
            yield record


@dataclass(frozen=True, kw_only=True)
class Watched:
    """What was seen last of a run while it trained."""

    grid: tuple[int, Path] | None = None  # images seen, and the PNG
    number: tuple[str, str, float, int] | None = None  # metric, name of the number, the number, images seen


def newest_watched(folder: Path, *, spec: str | None = None) -> Watched:
    """Return the newest grid and number in `folder`/watch, a run's folder of results or its work folder.

    With `spec`, those of another run hash do not count; damaged files do not in any case.
    """
    files = [(int(count), path) for path in (folder / "watch").glob("*.*") if (count := _count(path)).isdecimal()]
    grid: tuple[int, Path] | None = None
    number: tuple[str, str, float, int] | None = None
    for images, path in sorted(files, key=lambda each: (each[0], each[1].name)):
        if path.suffix == ".png":
            grid = images, path
            continue
        record, _ = found_at(path, read_measurement)
        if record is not None and record.get("metric") and record["values"] and spec in (None, record.get("spec")):
            name = next(iter(record["values"]))
            number = str(record["metric"]), name, float(record["values"][name]), images
    return Watched(grid=grid, number=number)


def _count(path: Path) -> str:
    return path.name.partition(".")[0]


def found_at(path: Path, read: Callable[[Path], Content]) -> tuple[Content | None, str]:
    """Read evidence: return its content and "", or None and what the reader of a table or page gets for it.

    That is "missing: FILE" or "damaged: FILE: reason", in one line.
    """
    if not path.exists() and not path.is_symlink():
        return None, f"missing: {path}"
    try:
        return read(path), ""
    except (ValueError, OSError) as error:
        text = " ".join(str(error).split())
        return None, f"damaged: {text if text.startswith(str(path)) else f'{path}: {text}'}"
