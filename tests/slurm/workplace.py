"""A working directory with one run of two processes, and the drivers that people start and lose in it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import yaml
from slurm_cluster import Job, Slurm, until

from onestep.cli import main
from onestep.config import read_experiment, run_document
from onestep.launch.journal import Journal
from tiny import REPOSITORY, write_config

RUN = "digits_backbone"
SUMMARY = f"results/runs/{RUN}/summary.json"
_SECONDS = 180.0
_LAUNCH = {
    "processes_per_node": 2,
    "memory_gib": 4,
    "state_seconds": 0.5,
    "poll_seconds": 0.5,
    "grace_seconds": 20.0,
    "hours": 0.2,
}


def small_config(*, launch: Mapping[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """Return a config of one run that trains for some seconds, with some keys of `launch` and of the run changed."""
    config = json.loads(json.dumps(yaml.safe_load((REPOSITORY / "tests" / "slurm" / "config.yaml").read_text())))
    run = {**config["runs"][RUN], "images": 6_400, "snapshot_every": 3_200, **changes}
    kept = {key: config[key] for key in ("inputs", "datasets", "storage")}
    return {**kept, "runs": {RUN: run}, "launch": {**config["launch"], **_LAUNCH, **(launch or {})}}


@dataclass(frozen=True, kw_only=True)
class Driver:
    """A process that somebody started, in a session and process group of its own.

    Attributes:
        output: File of all that it says.
    """

    process: subprocess.Popen
    output: Path

    @property
    def said(self) -> str:
        """All that it has said so far."""
        return self.output.read_text()

    def awaits(self, words: str, *, seconds: float = _SECONDS) -> None:
        """Wait until it has said something."""
        until(lambda: words in self.said or self.process.poll() is not None, seconds=seconds, what=f"it says {words}")
        assert words in self.said, self.said

    def signal_group(self, number: signal.Signals) -> None:
        """Send a signal to it and all that it started, as a terminal does."""
        os.killpg(self.process.pid, number)

    def code(self, *, seconds: float = _SECONDS) -> int:
        """Wait for its end; return its exit code."""
        return self.process.wait(timeout=seconds)

    def ends(self, code: int, *, seconds: float = _SECONDS) -> str:
        """Wait for its end with an exit code; return all that it said."""
        found = self.code(seconds=seconds)
        assert found == code, self.said
        return self.said


def _heeding() -> None:
    """Let no signal be ignored because the tests were started in a background or under nohup."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@dataclass(frozen=True, kw_only=True)
class Workplace:
    """A working directory on a cluster.

    Attributes:
        drivers: Those that were started in it.
    """

    folder: Path
    slurm: Slurm
    drivers: list[Driver] = field(default_factory=list)

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
        return Workplace(folder=folder, slurm=self.slurm)

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
        """End what a failed test has left."""
        for driver in self.drivers:
            if driver.process.poll() is None:
                driver.signal_group(signal.SIGKILL)
                driver.process.wait()

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
        """Every life of every job that was ever submitted under the run's name, says accounting."""
        return [job for journal in self.journals for job in self.jobs_of(journal)]

    def jobs_of(self, journal: Journal) -> list[Job]:
        """Return the same of one config of the run."""
        job = journal.job
        assert job is not None
        until(
            lambda: int(job.job_id) in [each.id for each in self.slurm.jobs(job.name)],
            seconds=30,
            what="accounting knows of the job",
        )
        return self.slurm.jobs(job.name)

    def hold(self, *, with_state: bool = False) -> None:
        """Wait until the run is in the midst of training, and stop its time there."""
        until(lambda: self._is_training(with_state=with_state), seconds=_SECONDS, what="it trains")
        _signal(self._rank_0, signal.SIGSTOP)
        assert not self.journal.is_done, "it had finished before it could be disturbed"

    def let_go(self) -> None:
        """Let its time run again."""
        _signal(self._rank_0, signal.SIGCONT)

    def _is_training(self, *, with_state: bool) -> bool:
        found = [journal for journal in self.journals if journal.images_seen >= 3 * 64]
        return any(not with_state or any(journal.folder.glob("state-*")) for journal in found)

    @property
    def _rank_0(self) -> int:
        return _process_in((self.journal.folder / "lock").read_text())

    @property
    def launcher(self) -> int:
        """The process that watches the run."""
        return _process_in(self.journal.watcher)

    def result(self) -> dict[str, Any]:
        """Return what was published: the bytes of each snapshot, and the losses by images seen."""
        published = self.folder / f"results/runs/{RUN}"
        return {**_snapshots(published), "losses": losses(published / "log.jsonl")}

    def kept_result(self, journal: Journal) -> dict[str, Any]:
        """Return the same of a run's work folder."""
        return {**_snapshots(journal.folder), "losses": losses(journal.folder / "log.jsonl")}

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


def _process_in(text: str) -> int:
    found = re.match(r"process (\d+) on ", text)
    assert found, text
    return int(found[1])


def _signal(process: int, number: signal.Signals) -> None:
    os.kill(process, number)


def _snapshots(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "snapshots").glob("*.safetensors")}


def losses(log: Path) -> Iterable[tuple[int, Any]]:
    """Return the losses of a log by images seen."""
    records = [json.loads(line) for line in log.read_text().splitlines()]
    return [(record["images_seen"], record["losses"]) for record in records]


def program(folder: Path, name: str, *lines: str) -> Path:
    """Write a program of shell; return its folder, to be put first in PATH."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("\n".join(["#!/bin/bash", *lines, ""]))
    (folder / name).chmod(0o755)
    return folder


def before(folder: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment with a folder first in PATH."""
    return {**environment, "PATH": f"{folder}{os.pathsep}{environment['PATH']}"}
