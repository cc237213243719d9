"""`onestep bench train`: images a second, shares of the phases, memory and utilisation of a run, per option set."""

from __future__ import annotations

import functools
import platform
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from onestep.bench.estimate import run_footprint
from onestep.bench.option_sets import OURS, OptionSet, option_set
from onestep.bench.random_run import random_training, random_wrapped, shape_of
from onestep.bench.recording import write_benchmark
from onestep.bench.timing import Contestant, Measured, device_memory, free, matmul_peak, memory, paired_ratio
from onestep.config.run import Run
from onestep.config.sections import Experiment
from onestep.distributed import Ranks
from onestep.training.execution import device_name
from onestep.training.footprint import Footprint

# A compiled network is compiled in its first step, recorded in its second and replayed from the third on.
_WARM_UP = {"compiled": 3, "plain": 1}


def bench_training(
    experiment: Experiment,
    run: str,
    *,
    sets: Sequence[str],
    batch: int | None,
    rounds: int,
    given: Mapping[str, int | None],
    ranks: Ranks,
    micro_batch: int | None = None,
) -> dict[str, Any]:
    """Time `rounds` steps of a run under each option set and return the input of `report_lines`, as JSON values.

    Speedups are relative to the first set that this device can run. Each other set is on the device beside that one
    alone, takes its steps in turn with it, and is freed. `given` is the shape of the images where the config does not
    define it. Without `micro_batch` all sets have the most images at once that each is estimated to fit, and a set
    that fails, also for lack of memory, leaves the others.

    Raises:
        ValueError: No such run or option set, or the shape or the teacher's architecture is unknown.
    """
    if run not in experiment.runs:
        raise ValueError(f"run: got {run!r}, expected one of {', '.join(experiment.runs)}")
    if rounds < 1 or any(each is not None and each < 1 for each in (batch, micro_batch)):
        raise ValueError(f"steps, batch, micro-batch: got {rounds}, {batch}, {micro_batch}, expected positive numbers")
    wanted = [option_set(name) for name in dict.fromkeys(sets)]
    shape = shape_of(experiment, run, given=given)
    images = batch or experiment.runs[run].batch
    estimates = _Estimates(experiment, run, given=given, on_cuda=ranks.device.type == "cuda")
    # With a number from outside nothing is estimated, and operations are counted on a step of two images.
    rows = micro_batch or _rows(wanted, estimates, images=images, run=experiment.runs[run], device=ranks.device)

    def contestant(options: OptionSet, *, images: int = images) -> Contestant:
        before, _ = memory(ranks.device)
        training = random_training(
            experiment, run, options=options, shape=shape, batch=images, ranks=ranks, micro_batch=min(rows, images)
        )
        wrapped = random_wrapped(training, options=options)
        resident = max(0, memory(ranks.device)[0] - before)
        return Contestant(options=options, training=training, wrapped=wrapped, ranks=ranks, resident=resident)

    estimate = None if micro_batch else estimates(option_set(OURS))
    per_image = estimate.work if estimate else contestant(option_set(OURS), images=min(images, 2)).work()
    # Before and after, because a shared machine is rarely at its peak.
    peaks = _peaks(wanted, device=ranks.device)
    first: Contestant | None = None
    found: list[tuple[Measured, list[dict[str, float]], float]] = []
    left_out: list[dict[str, Any]] = []
    for options in wanted:
        # A failure of device or compiler is a finding about this set; the others are measured.
        try:
            each = contestant(options)
            each.warm_up(steps=_WARM_UP["compiled" if each.training.execution.networks else "plain"])
            # One step of each in turn, so that other load on the machine affects both alike.
            steps = _in_turn([each] if first is None else [first, each], rounds=rounds)
            found.append((each.measured(), steps[-1], paired_ratio(steps[0], steps[-1])))
            first = first or each
        except Exception as error:
            left_out.append({"name": options.name, **_reason(error, rows=min(rows, images))})
        each = None  # type: ignore[assignment]  # freed, unless it is the first
        free(ranks.device, compiled=first is None or not first.training.execution.networks)
    peaks = {kind: max(value, peaks[kind]) for kind, value in _peaks(wanted, device=ranks.device).items()}
    return {
        "run": run,
        "weights": "random",
        "shape": shape._asdict(),
        "batch": images,
        "micro_batch": min(rows, images),
        "rounds": rounds,
        "device": device_name(ranks.device),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "flops_per_image": per_image,
        "sets": [
            _finding(
                *each, flops=per_image * images, peaks=peaks, estimate=estimates.peak(each[0].options, rows, images)
            )
            for each in found
        ],
        "left_out": left_out,
    }


def _in_turn(contestants: Sequence[Contestant], *, rounds: int) -> list[list[dict[str, float]]]:
    """Let each take a step in turn, and return the seconds of an average step by phase, per round, of each."""
    for each in contestants:
        each.seconds = {}
    for _ in range(rounds):
        for each in contestants:
            each.time_a_step()
    return [each.per_step() for each in contestants]


class _Estimates:
    """Estimated memory of a run under option sets, computed once for those that need the same."""

    def __init__(self, experiment: Experiment, run: str, *, given: Mapping[str, int | None], on_cuda: bool) -> None:
        self._of = functools.partial(run_footprint, experiment, run, given=given, on_cuda=on_cuda)
        self._known: dict[str, Footprint | None] = {}

    def __call__(self, options: OptionSet) -> Footprint | None:
        """Return the estimate; None for a run that needs the values of tensors."""
        chosen, key = options.without_devices(), self._key(options)
        if key not in self._known:
            try:
                self._known[key] = self._of(options=chosen)
            except Exception:  # whatever has no answer without values: then this set starts without an estimate
                self._known[key] = None
        return self._known[key]

    def _key(self, options: OptionSet) -> str:
        return str(replace(options.without_devices(), name=""))

    def peak(self, options: OptionSet, rows: int, images: int) -> int | None:
        """Return the peak in bytes with `rows` of the `images` at once, by an estimate that has been made."""
        found = self._known.get(self._key(options))
        return None if found is None else found.peak(min(rows, images), accumulates=rows < images)


def _rows(wanted: Sequence[OptionSet], estimates: _Estimates, *, images: int, run: Run, device: torch.device) -> int:
    """Return the most images at once, up to the run's, with which every set that fits at all is estimated to fit."""
    rows = min(images, run.micro_batch or images)
    known = [found for options in wanted if (found := estimates(options)) is not None]
    room = device_memory(device) - (known[0].resident if len(known) > 1 else 0)
    largest = [found.largest(rows, memory=room) for found in known]
    return min((each for each in largest if each is not None), default=rows)


def _peaks(wanted: Sequence[OptionSet], *, device: torch.device) -> dict[str, float]:
    """Return the device's peak FLOP/s in each number type of the sets."""
    return {kind: matmul_peak(device, number_type=kind) for kind in {options.number_type for options in wanted}}


def _finding(
    measured: Measured,
    rounds: Sequence[Mapping[str, float]],
    ratio: float,
    *,
    flops: float,
    peaks: Mapping[str, float],
    estimate: int | None,
) -> dict[str, Any]:
    """Return the measurements of one option set."""
    seconds = {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}
    total, kind = sum(seconds.values()), measured.options.number_type
    return {
        "name": measured.options.name,
        "options": {"precision": measured.options.precision, "compile": measured.options.compile},
        "as_released": measured.options.as_released,
        "images_per_second": measured.batch / total,
        "ratio": ratio,
        "seconds": seconds,
        "shares": {name: value / total for name, value in seconds.items()},
        "memory_mib": measured.peak >> 20,
        "estimated_mib": None if estimate is None else estimate >> 20,
        "utilisation": flops / total / peaks[kind],
        "peak_type": kind,
        "peak_flops": peaks[kind],
        "every_round": rounds,
    }


def _reason(error: Exception, *, rows: int) -> dict[str, Any]:
    """Return why a set has no measurements."""
    if isinstance(error, torch.OutOfMemoryError):
        fix = f". Fix: --micro-batch {rows // 2}" if rows > 1 else ""
        return {"reason": f"out of memory with {rows} images at once{fix}", "out_of_memory": True}
    return {"reason": _one_line(error), "out_of_memory": False}


def _one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{lines[0] if lines else type(error).__name__}"[:300]


def write_bench_record(folder: Path, found: Mapping[str, Any], *, took: Mapping[str, Any]) -> Path:
    """Write the findings as a record: speed, ratio, memory and utilisation of each set, and the reasons of the rest."""
    numbers: dict[str, float | str | None] = {
        "batch": found["batch"],
        "gflop_per_image": found["flops_per_image"] / 1e9,
    }
    for each in found["sets"]:
        for key in ("images_per_second", "ratio", "memory_mib", "utilisation"):
            numbers[f"{each['name']}.{key}"] = each[key]
    numbers |= {f"{each['name']}.left_out": each["reason"] for each in found["left_out"]}
    sets = {each["name"]: each for each in found["sets"]}
    headline: Mapping[str, Any] = sets.get(OURS) or next(iter(sets.values()), {})
    return write_benchmark(
        folder,
        name=f"bench_train_{found['run']}".lower().replace("-", "_"),
        about=f"Training steps of {found['run']} with random weights, batch {found['batch']}, by sets of options.",
        took=took,
        numbers=numbers,
        gpu=None if found["device"].startswith("CPU") else found["device"],
        images_per_second=headline.get("images_per_second"),
        memory_mib=headline.get("memory_mib"),
        details={key: found[key] for key in ("run", "weights", "shape", "rounds", "device")},
    )


def report_lines(found: dict[str, Any]) -> Iterator[str]:
    """Yield the findings as Markdown."""
    shape = found["shape"]
    yield (
        f"{found['run']}: random weights, synthetic pixels {shape['channels']}x{shape['resolution']}x"
        f"{shape['resolution']}, batch {found['batch']}{_parts(found)}, {found['flops_per_image'] / 1e9:.1f} GFLOP an "
        f"image; {found['device']}, torch {found['torch']}; medians of {found['rounds']} steps, each in turn with one "
        "of the first set."
    )
    yield ""
    if found["sets"]:
        yield from _table(found["sets"], out_of_memory=[e["name"] for e in found["left_out"] if e["out_of_memory"]])
        yield ""
        peaks = {each["peak_type"]: each["peak_flops"] for each in found["sets"]}
        measured = ", ".join(f"{kind} {value / 1e12:.3g} TFLOP/s" for kind, value in sorted(peaks.items()))
        yield f"Utilization is relative to the best product of large matrices measured here: {measured}."
        if found["device"].startswith("CPU"):
            yield "Peak memory is that of the whole process with the networks of this set and the first."
    for each in found["left_out"]:
        yield f"Left out: {each['name']}: {each['reason']}."


def _parts(found: Mapping[str, Any]) -> str:
    return f" in micro-batches of up to {found['micro_batch']}" if found["micro_batch"] < found["batch"] else ""


def _table(sets: Sequence[dict[str, Any]], *, out_of_memory: Sequence[str]) -> Iterator[str]:
    phases = list(sets[0]["seconds"])
    columns = ["set", "images/s", "ratio", *phases, "peak memory", "estimated", "utilisation"]
    yield f"| {' | '.join(columns)} |"
    yield f"| --- |{' ---: |' * (len(columns) - 1)}"
    for each in sets:
        cells = [f"{1000 * each['seconds'][p]:.1f} ms, {100 * each['shares'][p]:.0f} %" for p in phases]
        numbers = [f"{each['images_per_second']:.4g}", f"{each['ratio']:.2f}", *cells]
        estimate = "-" if each["estimated_mib"] is None else f"{each['estimated_mib']:,} MiB"
        last = [f"{each['memory_mib']:,} MiB", estimate, f"{100 * each['utilisation']:.1f} % of {each['peak_type']}"]
        yield f"| {' | '.join([each['name'], *numbers, *last])} |"
    for name in out_of_memory:
        yield f"| {' | '.join([name, 'out of memory', *('-' for _ in columns[2:])])} |"
