"""Launchers at work: `onestep launch` as a process, each with a config, a state folder and a job of its own."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from slurm_cluster import Job, Slurm, until

from tiny import REPOSITORY, tiny_config, write_config

RUN = "digits_edm"
# No launcher may take longer, whatever happens to its job.
DEADLINE_SECONDS = 300.0

_LAUNCH = {
    "backend": "slurm",
    "processes_per_node": 2,
    "memory_gib": 4,
    "device": "cpu",
    "gpu_type": "a100",
    "hours": 0.5,
    "signal_seconds": 60,
    "state_seconds": 1.0,
    "poll_seconds": 0.5,
    "grace_seconds": 30.0,
}


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a finished run published, as far as it may not depend on what happened on the way.

    Attributes:
        snapshots: SHA-256 of each snapshot's file.
        records: All of the log but speed and memory.
    """

    snapshots: Mapping[str, str]
    records: tuple[Mapping[str, Any], ...]

    @classmethod
    def of(cls, folder: Path) -> Result:
        """Read a published run."""
        found = sorted((folder / "snapshots").iterdir())
        lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
        kept = ("images_seen", "losses", "observed", "non_finite")
        return cls(
            snapshots={path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in found},
            records=tuple({key: line.get(key) for key in kept} for line in lines),
        )


@dataclass(frozen=True, kw_only=True)
class Site:
    """Where launches work, and from what.

    Attributes:
        folder: Receives a folder for each launch.
        data: The dataset archive.
        config: The config, but for `launch`.
        slurm: The cluster.
        processes: The launchers.
    """

    folder: Path
    data: Path
    config: Mapping[str, Any]
    slurm: Slurm
    processes: list[subprocess.Popen] = field(default_factory=list)

    @classmethod
    @contextmanager
    def prepared(cls, folder: Path, *, slurm: Slurm, **run: Any) -> Iterator[Site]:
        """Make what a run trains from; `run` replaces options of it. No launcher outlives it."""
        config = tiny_config()
        # Some seconds of training.
        config["runs"][RUN] |= {"batch": 16, "images": 960, "snapshot_every": 320} | run
        data, options = folder / "digits.zip", json.dumps({"name": "digits", "resolution": 16})
        source = files("sklearn") / "datasets" / "data" / "digits.csv.gz"
        _onestep("prepare", "--dataset", options, "--source", source, "--output", data, environment=slurm.environment)
        site = cls(folder=folder, data=data, config=config, slurm=slurm)
        try:
            yield site
        finally:
            site._clear_up()

    def launch(self, name: str, *, environment: Mapping[str, str] | None = None, **launch: Any) -> Launch:
        """Start a launcher; `launch` replaces options of the config's section. A name launched before goes on."""
        folder = self.folder / name
        config = write_config(folder, {**self.config, "launch": _LAUNCH | launch})
        resolved = folder / "results" / "runs" / RUN / "run.yaml"
        environment = self.slurm.environment if environment is None else environment
        if not resolved.exists():
            _onestep("resolve", "--config", config, "--run", RUN, "--output", resolved, environment=environment)
        place = ("--state", folder / "state", "--output", folder / "results" / "runs")
        verb = ("launch", "--config", config, "--run", resolved, "--data", self.data, *place)
        with (folder / "launch.log").open("ab") as log:
            log.write(b"== launched\n")
            log.flush()
            process = subprocess.Popen(
                _command(*verb), env=_environment(environment), cwd=folder, stdout=log, stderr=subprocess.STDOUT
            )
        self.processes.append(process)
        return Launch(folder=folder, process=process, slurm=self.slurm)

    def _clear_up(self) -> None:
        """End the launchers that a failed test has left."""
        for process in self.processes:
            process.kill()
            process.wait()


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A launcher, its run and its job."""

    folder: Path
    process: subprocess.Popen
    slurm: Slurm
    begun: float = field(default_factory=time.monotonic)
    _ended_at: list[float] = field(default_factory=list)

    @property
    def said(self) -> str:
        """What the launcher printed since it was started last."""
        return (self.folder / "launch.log").read_text().rpartition("== launched\n")[2]

    @property
    def state(self) -> Path:
        """The run's work folder."""
        (found,) = (self.folder / "state" / RUN).iterdir()
        return found

    @property
    def job(self) -> int:
        """The job that was submitted last."""
        return int(json.loads((self.state / "job.json").read_text())["job_id"])

    @property
    def images_seen(self) -> int:
        """How far the training is."""
        logs = list((self.folder / "state" / RUN).glob("*/log.jsonl"))
        lines = logs[0].read_bytes().rpartition(b"\n")[0].splitlines() if logs else []
        return json.loads(lines[-1])["images_seen"] if lines else 0

    @property
    def result(self) -> Result:
        """What was published."""
        return Result.of(self.folder / "results" / "runs" / RUN)

    @property
    def history(self) -> dict[str, Any]:
        """What the finished training says of its lives."""
        return json.loads((self.folder / "results" / "runs" / RUN / "summary.json").read_text())

    def lives(self) -> list[tuple[int, str]]:
        """Return, after accounting, the id and the last state of each life of each job of the run, oldest first."""
        return [(life.id, life.state) for life in self.jobs()]

    def jobs(self) -> list[Job]:
        """Return what accounting says of each of them."""
        return self.slurm.jobs(json.loads((self.state / "job.json").read_text())["name"])

    def ranks(self) -> list[int]:
        """Return the process ids of the training's ranks."""
        mark = str(self.state / "submitit").encode()
        found = (entry for entry in Path("/proc").iterdir() if entry.name.isdigit())
        return [int(entry.name) for entry in found if _is_rank(entry, mark)]

    def trains(self, images: int = 64) -> Launch:
        """Wait until the training has come so far."""
        until(lambda: self.images_seen >= images or self._ended(), seconds=120, what=f"{self.folder.name} trains")
        assert self.process.poll() is None, self.said
        return self

    def halts(self, images: int = 64) -> Launch:
        """Wait until the training has come so far, and hold its ranks there: on no machine may it end before a fault.

        SLURM lets them go on when it ends them.
        """
        self.trains(images)
        self._signal(signal.SIGSTOP)
        return self

    def goes_on(self) -> None:
        """Let the ranks go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        for rank in self.ranks():
            os.kill(rank, number)

    def ends(self) -> int:
        """Wait for the launcher's end; return its exit code."""
        try:
            code = self.process.wait(timeout=DEADLINE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"the launcher hangs: {self.said}") from None
        self._ended_at.append(time.monotonic())
        return code

    @property
    def seconds(self) -> float:
        """How long the launcher took, as far as `ends` saw it."""
        return self._ended_at[0] - self.begun

    def _ended(self) -> bool:
        return self.process.poll() is not None


def _is_rank(entry: Path, mark: bytes) -> bool:
    try:
        words = (entry / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"submitit.core._submit" in words and mark in words and b"srun" not in words[0]


def _command(*words: object) -> list[str]:
    return [sys.executable, "-m", "onestep", *map(str, words)]


def _onestep(*words: object, environment: Mapping[str, str]) -> None:
    done = subprocess.run(_command(*words), env=_environment(environment), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def _environment(environment: Mapping[str, str]) -> dict[str, str]:
    return {**environment, "PYTHONPATH": str(REPOSITORY / "src"), "OMP_NUM_THREADS": "1"}
