"""A working directory with one run of two processes, and the drivers started in it.

A driver is a launcher, or the Snakemake that starts one.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import yaml
from slurm_cluster import Job, Slurm, until

from onestep.cli import main
from onestep.config import read_experiment, run_document
from onestep.files import read_json
from onestep.launch.journal import Journal
from tiny import REPOSITORY, write_config

RUN = "digits_edm"
SUMMARY = f"results/runs/{RUN}/summary.json"
_SECONDS = 180.0
# Some seconds of training, a record every step and a state every second.
_TRAINING = {"batch": 16, "images": 960, "snapshot_every": 320}
_LAUNCH = {
    "processes_per_node": 2,
    "memory_gib": 4,
    "hours": 0.2,
    "signal_seconds": 60,
    "state_seconds": 1.0,
    "poll_seconds": 0.5,
    "grace_seconds": 30.0,
}


def small_config(*, launch: Mapping[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """Return a config of one run that trains for some seconds, with some keys of `launch` and of the run changed."""
    config = yaml.safe_load((REPOSITORY / "tests" / "slurm" / "config.yaml").read_text())
    kept = {key: config[key] for key in ("inputs", "datasets", "storage")}
    run = {**config["runs"][RUN], **_TRAINING, **changes}
    return {**kept, "runs": {RUN: run}, "launch": {**config["launch"], **_LAUNCH, **(launch or {})}}


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a finished run leaves, as far as it may not depend on what happened on the way.

    Attributes:
        snapshots: SHA-256 of each snapshot's file.
        records: All of the log but speed and memory.
    """

    snapshots: Mapping[str, str]
    records: tuple[Mapping[str, Any], ...]

    @classmethod
    def of(cls, folder: Path) -> Result:
        """Read a published run, or the folder that a run works in."""
        found = sorted((folder / "snapshots").iterdir())
        lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
        kept = ("images_seen", "losses", "observed", "non_finite")
        return cls(
            snapshots={path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in found},
            records=tuple({key: line.get(key) for key in kept} for line in lines),
        )


@dataclass(frozen=True, kw_only=True)
class Driver:
    """A started process, in a session and process group of its own.

    Attributes:
        output: File with its output.
        begun: When it was started, on the monotonic clock.
    """

    process: subprocess.Popen
    output: Path
    begun: float = field(default_factory=time.monotonic)
    _ended_at: list[float] = field(default_factory=list)

    @property
    def text(self) -> str:
        """Its output so far."""
        return self.output.read_text()

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self.process.poll() is None

    def awaits(self, words: str, *, seconds: float = _SECONDS) -> None:
        """Wait for words in its output."""
        until(lambda: words in self.text or not self.is_running, seconds=seconds, what=f"it prints {words}")
        assert words in self.text, self.text

    def signal_group(self, number: signal.Signals) -> None:
        """Send a signal to it and all that it started, as a terminal does."""
        os.killpg(self.process.pid, number)

    def code(self, *, seconds: float = _SECONDS) -> int:
        """Wait for its end; return its exit code. One that takes longer hangs, and is killed."""
        try:
            code = self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"it hangs: {self.text}") from None
        self._ended_at.append(time.monotonic())
        return code

    def ends(self, code: int, *, seconds: float = _SECONDS) -> str:
        """Wait for its end with an exit code; return its output."""
        found = self.code(seconds=seconds)
        assert found == code, self.text
        return self.text

    @property
    def seconds(self) -> float:
        """How long it took, if its end was awaited."""
        return self._ended_at[0] - self.begun

    def kill(self) -> None:
        """End it and all that it started, if it has not ended."""
        if self.is_running:
            self.signal_group(signal.SIGKILL)
            self.process.wait()


def _heeding() -> None:
    """Let no signal be ignored because the tests were started in a background or under nohup."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@dataclass(frozen=True, kw_only=True)
class Workplace:
    """A working directory on a cluster.

    Attributes:
        drivers: Those that were started in it.
        copies: Those that were made of it.
    """

    folder: Path
    slurm: Slurm
    drivers: list[Driver] = field(default_factory=list)
    copies: list[Workplace] = field(default_factory=list)

    def configure(self, *, launch: Mapping[str, Any] | None = None, **changes: Any) -> None:
        """Write config.yaml, and run.yaml as `onestep resolve` does."""
        path = write_config(self.folder, small_config(launch=launch, **changes))
        document = yaml.safe_dump(run_document(read_experiment(path), RUN), sort_keys=False, allow_unicode=True)
        written = self.folder / f"results/runs/{RUN}/run.yaml"
        written.parent.mkdir(parents=True, exist_ok=True)
        if not written.exists() or written.read_text() != document:
            written.write_text(document)

    def prepare(self) -> None:
        """Fetch and prepare the dataset."""
        source, archive = self.folder / "results/inputs/digits/digits.csv.gz", self.folder / "results/data/digits.zip"
        config = small_config()
        dataset = {key: value for key, value in config["datasets"]["digits"].items() if key in ("name", "resolution")}
        assert main(["fetch", "--source", json.dumps(config["inputs"]["digits"]), "--output", str(source)]) == 0
        assert (
            main(["prepare", "--dataset", json.dumps(dataset), "--source", str(source), "--output", str(archive)]) == 0
        )

    def copy(self, folder: Path, *, whole: bool = False) -> Workplace:
        """Return a copy: of its inputs, as if the run had never been trained, or of all that is in it."""
        left_out = () if whole else ("state", "logs", "snapshots", "log.jsonl", "summary.json")
        shutil.copytree(self.folder, folder, ignore=shutil.ignore_patterns(*left_out, "driver.*"), symlinks=True)
        self.copies.append(Workplace(folder=folder, slurm=self.slurm))
        return self.copies[-1]

    def start(self, *command: str, environment: Mapping[str, str] | None = None, **how: Any) -> Driver:
        """Start a command in the working directory."""
        output = next(path for n in count() if not (path := self.folder / f"driver.{n}.txt").exists())
        with output.open("w") as file:
            process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=self.environment(environment),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_heeding,
                **how,
            )
        driver = Driver(process=process, output=output)
        self.drivers.append(driver)
        return driver

    def environment(self, base: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return an environment in which `onestep` is this repository's."""
        base = self.slurm.environment if base is None else base
        return {**base, "PYTHONPATH": str(REPOSITORY / "src"), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}

    def launch(self, **how: Any) -> Driver:
        """Start `onestep launch`, as the rule does."""
        files = ("--run", f"results/runs/{RUN}/run.yaml", "--data", "results/data/digits.zip")
        places = ("--state", "state", "--output", "results/runs")
        return self.start("onestep", "launch", "--config", "config.yaml", *files, *places, **how)

    def onestep(self, *words: str, **how: Any) -> Driver:
        """Start `onestep WORDS`."""
        return self.start("onestep", *words, **how)

    def snakemake(self, *arguments: str, profile: str = "local") -> Driver:
        """Start Snakemake on the run."""
        where = ("--snakefile", str(REPOSITORY / "Snakefile"), "--profile", str(REPOSITORY / "profiles" / profile))
        return self.start(sys.executable, "-m", "snakemake", *where, SUMMARY, *arguments)

    def clear_up(self) -> None:
        """End what a failed test has left, here and in copies."""
        for driver in self.drivers:
            driver.kill()
        for copy in self.copies:
            copy.clear_up()

    @property
    def driver(self) -> Driver:
        """The one that was started last."""
        return self.drivers[-1]

    @property
    def journals(self) -> list[Journal]:
        """Of the run's work folders, the newest last."""
        folders = (self.folder / "state" / RUN).glob("*/")
        return [Journal(each) for each in sorted(folders, key=lambda each: each.stat().st_ctime)]

    @property
    def journal(self) -> Journal:
        """Of the run's only work folder."""
        (journal,) = self.journals
        return journal

    @property
    def job(self) -> int:
        """The job that was submitted last."""
        return int(self.journals[-1].job.job_id)

    def events(self, what: str) -> list[dict[str, Any]]:
        """Return what launchers did."""
        lines = (self.journal.folder / "events.jsonl").read_text().splitlines()
        return [event for event in map(json.loads, lines) if event["what"] == what]

    def happens(self, what: str) -> None:
        """Wait until a launcher has done something."""
        place = self.folder / "state" / RUN
        until(lambda: any(place.glob("*/events.jsonl")), seconds=_SECONDS, what=what)
        until(lambda: self.events(what), seconds=_SECONDS, what=what)

    @property
    def jobs(self) -> list[Job]:
        """Every start of every job of the run's name in accounting, oldest first."""
        return [job for journal in self.journals for job in self.jobs_of(journal)]

    def jobs_of(self, journal: Journal) -> list[Job]:
        """Return the same of one config of the run."""
        job = journal.job
        assert job is not None
        until(
            lambda: int(job.job_id) in [each.id for each in self.slurm.jobs(job.name)],
            seconds=60,
            what=f"accounting has job {job.job_id}",
        )
        return self.slurm.jobs(job.name)

    @property
    def images_seen(self) -> int:
        """How far the training is."""
        return max((journal.images_seen for journal in self.journals), default=0)

    def trains(self, images: int = 64) -> Workplace:
        """Wait until the training has come so far, and see that its driver is still there."""
        return self._comes_to(lambda: self.images_seen >= images, what=f"it trains {images} images")

    def saves(self) -> Workplace:
        """Wait until there is a state to resume from, and see that its driver is still there."""
        states = (self.folder / "state" / RUN).glob
        return self._comes_to(lambda: any(states("*/state-*")), what="it saves a state")

    def _comes_to(self, holds: Callable[[], bool], *, what: str) -> Workplace:
        until(lambda: holds() or not self.driver.is_running, seconds=_SECONDS, what=what)
        assert self.driver.is_running, self.driver.text
        return self

    def halts(self, images: int = 64) -> Workplace:
        """Wait until the training has come so far, and hold its ranks there: on no machine may it end before a fault.

        SLURM continues them when it ends them.
        """
        self.trains(images)
        assert self._signal(signal.SIGSTOP) >= self.journal.job.processes, "it was not all of them"
        assert not self.journal.is_done, "it had finished before it could be disturbed"
        return self

    def resume(self) -> None:
        """Let the ranks continue."""
        self._signal(signal.SIGCONT)

    def ranks(self) -> list[int]:
        """Return the process ids of the training's ranks."""
        mark = str(self.journal.folder / "submitit").encode()
        found = (entry for entry in Path("/proc").iterdir() if entry.name.isdigit())
        return [int(entry.name) for entry in found if _is_rank(entry, mark)]

    def _signal(self, number: signal.Signals) -> int:
        ranks = self.ranks()
        for rank in ranks:
            os.kill(rank, number)
        return len(ranks)

    @property
    def launcher(self) -> int:
        """The process that watches the run."""
        found = re.match(r"process (\d+) on ", self.journal.watcher)
        assert found, self.journal.watcher
        return int(found[1])

    @property
    def result(self) -> Result:
        """What was published."""
        return Result.of(self.folder / "results/runs" / RUN)

    @property
    def summary(self) -> dict[str, Any]:
        """Published facts on the training's restarts and machine."""
        return read_json(self.folder / SUMMARY)

    @property
    def rule_log(self) -> list[str]:
        """The lines of the rule's log."""
        return (self.folder / f"logs/train/{RUN}.log").read_text().splitlines()

    def told_of(self, job: int) -> list[str]:
        """Return what the rule's log passes on of rank 0 of a job."""
        return [line.removeprefix(f"[{job}] ") for line in self.rule_log if line.startswith(f"[{job}] ")]

    def printed_by(self, job: int) -> list[str]:
        """Return what rank 0 of a job printed."""
        return (self.journal.folder / "submitit" / f"{job}_0_log.out").read_text().splitlines()


def _is_rank(entry: Path, mark: bytes) -> bool:
    try:
        words = (entry / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"submitit.core._submit" in words and mark in words and b"srun" not in words[0]


def program(folder: Path, name: str, *lines: str) -> Path:
    """Write a program of shell; return its folder, to be put first in PATH."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("\n".join(["#!/bin/bash", *lines, ""]))
    (folder / name).chmod(0o755)
    return folder


def before(folder: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment with a folder first in PATH."""
    return {**environment, "PATH": f"{folder}{os.pathsep}{environment['PATH']}"}
