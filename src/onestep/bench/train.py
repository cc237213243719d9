"""`onestep bench train`: images a second, shares of the phases, memory and utilisation of a run, per option set."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from onestep.bench.option_sets import OURS, OptionSet, option_set
from onestep.bench.random_run import random_training, random_wrapped, shape_of
from onestep.bench.recording import write_benchmark
from onestep.bench.timing import Contestant, matmul_peak, memory, paired_ratio
from onestep.config.sections import Experiment
from onestep.distributed import Ranks
from onestep.training.execution import device_name

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
) -> dict[str, Any]:
    """Time `rounds` steps of a run under each option set and return the input of `report_lines`, as JSON values.

    Speedups are relative to the first set that this device supports. `given` is the shape of the images where the
    config does not define it.

    Raises:
        ValueError: No such run or option set, or the shape or the teacher's architecture is unknown.
    """
    if run not in experiment.runs:
        raise ValueError(f"run: got {run!r}, expected one of {', '.join(experiment.runs)}")
    if rounds < 1 or (batch is not None and batch < 1):
        raise ValueError(f"steps, batch: got {rounds}, {batch}, expected positive numbers")
    wanted = [option_set(name) for name in dict.fromkeys(sets)]
    shape = shape_of(experiment, run, given=given)

    def contestant(options: OptionSet) -> Contestant:
        before, _ = memory(ranks.device)
        training = random_training(experiment, run, options=options, shape=shape, batch=batch, ranks=ranks)
        wrapped = random_wrapped(training, options=options)
        resident = max(0, memory(ranks.device)[0] - before)
        return Contestant(options=options, training=training, wrapped=wrapped, ranks=ranks, resident=resident)

    def ready(options: OptionSet) -> Contestant:
        chosen = plain if options.name == OURS else contestant(options)
        chosen.warm_up(steps=_WARM_UP["compiled" if chosen.training.execution.networks else "plain"])
        return chosen

    # The plain one is always built, because its operations are counted.
    plain = contestant(option_set(OURS))
    flops = plain.count()
    contestants, left_out = [], []
    for options in wanted:
        try:
            contestants.append(ready(options))
        # A failure of device or compiler is a finding about this set; the others are measured.
        except Exception as error:
            left_out.append({"name": options.name, "reason": _one_line(error)})
    # Before and after, because a shared machine is rarely at its peak.
    peaks = _peaks(contestants, device=ranks.device)
    # One step of each in turn, so that other load on the machine affects all of them alike.
    for _ in range(rounds):
        for each in contestants:
            each.time_a_step()
    peaks = {kind: max(value, peaks[kind]) for kind, value in _peaks(contestants, device=ranks.device).items()}
    every = {phase.name: phase.every for phase in plain.training.phases}
    per_step = sum(count / every.get(name, 1) for name, count in flops.items())
    return {
        "run": run,
        "weights": "random",
        "shape": shape._asdict(),
        "batch": plain.training.run.batch,
        "rounds": rounds,
        "device": device_name(ranks.device),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "flops_per_image": per_step / plain.training.run.batch,
        "sets": list(_findings(contestants, flops=per_step, peaks=peaks)),
        "left_out": left_out,
    }


def _peaks(contestants: Sequence[Contestant], *, device: torch.device) -> dict[str, float]:
    """Return the device's peak FLOP/s in each number type of the sets."""
    types = {contestant.options.number_type for contestant in contestants}
    return {kind: matmul_peak(device, number_type=kind) for kind in types}


def _findings(
    contestants: Sequence[Contestant], *, flops: float, peaks: Mapping[str, float]
) -> Iterator[dict[str, Any]]:
    """Yield the measurements of each option set."""
    steps = [contestant.per_step() for contestant in contestants]
    for contestant, rounds in zip(contestants, steps, strict=True):
        seconds = {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}
        total, kind = sum(seconds.values()), contestant.options.number_type
        yield {
            "name": contestant.options.name,
            "options": {"precision": contestant.options.precision, "compile": contestant.options.compile},
            "as_released": contestant.options.as_released,
            "images_per_second": contestant.training.run.batch / total,
            "ratio": paired_ratio(steps[0], rounds),
            "seconds": seconds,
            "shares": {name: value / total for name, value in seconds.items()},
            "memory_mib": contestant.peak >> 20,
            "utilisation": flops / total / peaks[kind],
            "peak_type": kind,
            "peak_flops": peaks[kind],
            "every_round": rounds,
        }


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
        f"{shape['resolution']}, batch {found['batch']}, {found['flops_per_image'] / 1e9:.1f} GFLOP an image; "
        f"{found['device']}, torch {found['torch']}; medians of {found['rounds']} interleaved steps."
    )
    yield ""
    if found["sets"]:
        yield from _table(found["sets"])
        yield ""
        peaks = {each["peak_type"]: each["peak_flops"] for each in found["sets"]}
        measured = ", ".join(f"{kind} {value / 1e12:.3g} TFLOP/s" for kind, value in sorted(peaks.items()))
        yield f"Utilization is relative to the best product of large matrices measured here: {measured}."
        if found["device"].startswith("CPU"):
            yield "Peak memory is that of the whole process with the networks of all sets."
    for each in found["left_out"]:
        yield f"Left out: {each['name']}: {each['reason']}."


def _table(sets: Sequence[dict[str, Any]]) -> Iterator[str]:
    phases = list(sets[0]["seconds"])
    columns = ["set", "images/s", "ratio", *phases, "peak memory", "utilisation"]
    yield f"| {' | '.join(columns)} |"
    yield f"| --- |{' ---: |' * (len(columns) - 1)}"
    for each in sets:
        cells = [f"{1000 * each['seconds'][p]:.1f} ms, {100 * each['shares'][p]:.0f} %" for p in phases]
        numbers = [f"{each['images_per_second']:.4g}", f"{each['ratio']:.2f}", *cells]
        last = [f"{each['memory_mib']:,} MiB", f"{100 * each['utilisation']:.1f} % of {each['peak_type']}"]
        yield f"| {' | '.join([each['name'], *numbers, *last])} |"
