"""Runs the steps of `plan.yaml`: each in a process of its own, bounded in time, compared, recorded, not repeated.

A step with a record of the same code on the same GPU, which did not fail, was done before. The exit code is 0 if all
that ran is as expected, 1 if something is not, and 2 without a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).parents[2]
PLAN = Path(os.environ.get("ONESTEP_GPU_PLAN", Path(__file__).with_name("plan.yaml")))
LIMIT = 600.0
"""Seconds of a part."""

_LEAST_SECONDS = 20.0  # a step that gets less is left for another run
_OUTCOME = "outcome"
_HEADLINES = ("images_per_second", "memory_mib")


@dataclass(frozen=True, kw_only=True)
class Step:
    """A step of the plan; see there."""

    part: str
    name: str
    about: str
    call: str
    seconds: float
    expected: Mapping[str, Mapping[str, float]]
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def record(self) -> str:
        """The name of its records."""
        return f"gpu_{self.part}_{self.name}"


def read_plan(path: Path = PLAN) -> dict[str, list[Step]]:
    """Return the steps of each part, in order."""
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {
        part: [Step(part=part, name=name, **block) for name, block in steps.items()] for part, steps in document.items()
    }


def verdict(value: float | str | None, bounds: Mapping[str, float]) -> str:
    """Return "as expected", "lower", "higher", or "no number" for a number and the bounds of its prediction."""
    if not isinstance(value, (int, float)):
        return "no number"
    if value < bounds.get("low", -float("inf")):
        return "lower"
    return "higher" if value > bounds.get("high", float("inf")) else "as expected"


def bounds_in_words(bounds: Mapping[str, float]) -> str:
    """Return bounds as "2 to 9", "at most 3", "at least 0.98" or "7"."""
    low, high = (None if key not in bounds else f"{bounds[key]:.6g}" for key in ("low", "high"))
    if low is not None and high is not None:
        return low if low == high else f"{low} to {high}"
    return f"at least {low}" if low is not None else f"at most {high}"


def main(words: Sequence[str]) -> int:
    """Run parts of the plan."""
    plan = read_plan()
    parser = argparse.ArgumentParser(prog="make gpu", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(plan)}; without one all")
    parser.add_argument("--records", type=Path, default=REPOSITORY / "docs" / "records", help="folder of the records")
    parser.add_argument("--work", type=Path, default=REPOSITORY / "results" / "gpu", help="folder of what steps keep")
    parser.add_argument("--seconds", type=float, default=LIMIT, help="most seconds of a part")
    parser.add_argument("--again", action="store_true", help="also steps that were done before")
    parser.add_argument("--step", help="run one step in this process, as the runner does")
    parser.add_argument("--device", default="cuda", help=argparse.SUPPRESS)
    parser.add_argument("--found", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(list(words))
    if unknown := [part for part in given.parts if part not in plan]:
        print(f"PART: got {unknown[0]!r}, expected one of {', '.join(plan)}", file=sys.stderr)
        return 2
    gpu = gpu_name() if given.device == "cuda" else None
    if given.device == "cuda" and gpu is None:
        print("make gpu: got no CUDA device, expected one. Fix: run it on a machine with a GPU", file=sys.stderr)
        return 2
    if given.step:
        step = next(step for steps in plan.values() for step in steps if step.name == given.step)
        carry_out(step, device=given.device, found=given.found, work=given.work, records=given.records)
        return 0
    parts = [steps for part, steps in plan.items() if part in (given.parts or plan)]
    codes = [
        run_part(
            steps,
            gpu=gpu,
            records=given.records,
            work=given.work,
            seconds=given.seconds,
            again=given.again,
            device=given.device,
        )
        for steps in parts
    ]
    return max(codes)


def failure(error: Exception) -> str:
    """Return an error as the outcome of a step: its type and first line, at most 300 characters."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"[:300]


def gpu_name() -> str | None:
    """Return the name of the GPU, None without one."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def carry_out(step: Step, *, device: str, found: Path | None, work: Path, records: Path) -> None:
    """Run a step in this process, and append what it yields to the file `found`, a JSON object a line."""
    import torch

    module, _, name = step.call.partition(":")
    options = dict(step.options)
    if step.call == "trial:trial":
        options["work"] = str(work / step.name)
    if step.call == "speed:bench":
        sets = options.pop("sets")
        options |= {"words": [*options["words"], "--sets", ",".join(sets)], "record": str(records)}
    function = getattr(importlib.import_module(f"gpu.{module}"), name)
    try:
        # As trainings have it, with an index.
        where = torch.device(device, torch.cuda.current_device()) if device == "cuda" else torch.device(device)
        for numbers in function(where, **options):
            _add(found, numbers)
    except Exception as error:
        _add(found, {_OUTCOME: failure(error)})


def _add(found: Path | None, numbers: Mapping[str, Any]) -> None:
    for name, value in numbers.items():
        print(f"  {name}: {value if isinstance(value, str) else f'{value:.6g}'}", flush=True)
    if found is not None:
        with open(found, "a", encoding="utf-8") as file:
            file.write(json.dumps(dict(numbers)) + "\n")


def run_part(
    steps: Sequence[Step],
    *,
    gpu: str | None,
    records: Path,
    work: Path,
    seconds: float = LIMIT,
    again: bool = False,
    device: str = "cuda",
) -> int:
    """Run the steps of a part within `seconds`, print predictions beside what was seen, and return 0 or 1."""
    from onestep.bench.recording import Stopwatch, write_benchmark

    deadline, done, code = time.monotonic() + seconds, {} if again else done_before(records, gpu=gpu), 0
    for step in steps:
        print(f"{step.part}: {step.name}: {step.about}", flush=True)
        if step.record in done:
            print(f"  done before: {done[step.record]}")
            continue
        left = deadline - time.monotonic()
        if left < min(_LEAST_SECONDS, step.seconds):
            print("  left for another run: the time of this part is over")
            code = 1
            continue
        watch = Stopwatch()
        numbers = _in_a_process(step, seconds=min(left, step.seconds), device=device, records=records, work=work)
        took = watch.read()
        if str(numbers.get(_OUTCOME, "")).startswith("left out"):
            continue
        path = write_benchmark(
            records,
            name=step.record,
            about=step.about,
            took=took,
            numbers=numbers,
            command=["make", "gpu", f"PART={step.part}"],
            gpu=gpu,
            **{key: value for key in _HEADLINES if isinstance(value := numbers.get(key), (int, float))},
            details={"expected": {key: dict(bounds) for key, bounds in step.expected.items()}},
        )
        for name, bounds in step.expected.items():
            seen = numbers.get(name)
            result = verdict(seen, bounds)
            shown = f"{seen:.6g}" if isinstance(seen, (int, float)) else str(seen)
            print(f"  {result}: {name} is {shown}, expected {bounds_in_words(bounds)}", flush=True)
            code = code if result == "as expected" else 1
        code = 1 if any(name.endswith(_OUTCOME) for name in numbers) else code
        print(f"  {path.name}: {took['seconds']:.0f} s", flush=True)
    return code


def done_before(records: Path, *, gpu: str | None) -> dict[str, str]:
    """Return the files of the records of this code on this GPU whose step did not fail, by the name of the record."""
    from onestep.bench.recording import read_benchmarks, source_digest

    code = source_digest()
    return {
        record["name"]: record["file"]
        for record in read_benchmarks(records)
        if record["source_sha256"] == code and record["machine"]["gpu"] == gpu and _OUTCOME not in record["numbers"]
    }


def _in_a_process(step: Step, *, seconds: float, device: str, records: Path, work: Path) -> dict[str, Any]:
    """Return the numbers of a step; of one that was stopped, those that it had found."""
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder, "found.jsonl")
        words = ["--step", step.name, "--found", str(found), "--device", device]
        words += ["--records", str(records.absolute()), "--work", str(work.absolute())]
        command = [sys.executable, "-W", "ignore", "-m", "gpu", *words]
        with _group(command) as process:
            try:
                process.wait(timeout=seconds)
            except subprocess.TimeoutExpired:
                _add(found, {_OUTCOME: f"stopped after {seconds:.0f} s"})
        if process.returncode not in (0, None) and not _has_outcome(found):
            _add(found, {_OUTCOME: f"exit code {process.returncode}"})
        lines = found.read_text(encoding="utf-8").splitlines() if found.exists() else []
    return {name: value for line in lines for name, value in json.loads(line).items()}


def _has_outcome(found: Path) -> bool:
    return found.exists() and f'"{_OUTCOME}":' in found.read_text(encoding="utf-8")


@contextlib.contextmanager
def _group(command: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Start a process that leads a group, which is killed at the end with all that it has started."""
    path = os.pathsep.join([str(REPOSITORY / "src"), str(REPOSITORY / "tests"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    process = subprocess.Popen(command, cwd=REPOSITORY, env=environment, start_new_session=True)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
