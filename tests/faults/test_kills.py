"""The whole pipeline is killed at seeded moments and run again: its files are those of a run that nobody disturbed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from pipeline import attacked_config, outcome

from tiny import REPOSITORY, write_config

KILLS = int(os.environ.get("ONESTEP_ATTACK_KILLS", "30"))
_PUBLISHED = ["data", "teachers", "runs", "samples", "features", "metrics", "grids", "tables"]


def _config() -> dict[str, Any]:
    """Return a config of few jobs, whose trainings save a state at every step."""
    config = attacked_config()
    config["launch"]["state_seconds"] = 0.01
    config["runs"]["digits_edm"]["conditional"] = config["runs"]["digits_d2o"]["conditional"] = False
    del config["runs"]["digits_d2o"]["discriminator"]["class_embeddings"], config["class_embeddings"], config["studies"]
    config["metrics"] = {"fd": config["metrics"]["fd"]}
    table = config["tables"]["digits"]
    config["tables"] = {"digits": {**table, "columns": {"fd": "fd.frechet"}, "rows": table["rows"][1:]}}
    del config["tables"]["digits"]["curves"]
    return config


class Run:
    """Snakemake and all that it starts."""

    def __init__(self, work: Path) -> None:
        command = [sys.executable, "-m", "snakemake", "--snakefile", str(REPOSITORY / "Snakefile"), "--nolock"]
        command += ["--directory", str(work), "--cores", "2", "--scheduler", "greedy", "--rerun-incomplete"]
        variables = {**os.environ, "PYTHONPATH": str(REPOSITORY / "src"), "OMP_NUM_THREADS": "1"}
        variables["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{variables['PATH']}"
        self._log = open(work.with_suffix(".log"), "ab")  # noqa: SIM115
        self.process = subprocess.Popen(
            command, env=variables, stdout=self._log, stderr=self._log, start_new_session=True
        )

    def ended_within(self, seconds: float) -> bool:
        """Wait for the end, which must be a good one; return False if it did not come in time."""
        try:
            code = self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return False
        assert code == 0, Path(self._log.name).read_text()[-5000:]
        self._log.close()
        return True

    def kill(self) -> None:
        """Kill it and all that it started, none of which can leave its session."""
        for process in _session(self.process.pid):
            os.kill(process, signal.SIGSTOP)
        for process in _session(self.process.pid):
            os.kill(process, signal.SIGKILL)
        self.process.wait()
        self._log.close()
        while _session(self.process.pid):
            time.sleep(0.02)


def _session(leader: int) -> list[int]:
    """Return the living processes of a session."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text().rpartition(") ")[2].split()
            except OSError:
                continue
            if int(fields[3]) == leader and fields[0] not in "ZX":
                found.append(int(entry.name))
    return found


def _published(work: Path) -> dict[str, str]:
    """Return the digests of what was published, without TensorBoard's events, whose names have time and process."""
    found = outcome(work, [f"results/{name}" for name in _PUBLISHED])
    return {name: digest for name, digest in found.items() if "/tensorboard/" not in name}


@pytest.mark.faults
def test_a_killed_pipeline_ends_with_the_same_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, seeded = tmp_path / "whole", random.Random(12)
    write_config(whole, _config())
    began = time.monotonic()
    assert Run(whole).ended_within(3600)
    duration, expected = time.monotonic() - began, _published(whole)
    assert len(expected) > 30, sorted(expected)
    kills, pipelines, differing = 0, 0, {}
    while kills < KILLS:
        pipelines += 1
        work = tmp_path / str(pipelines)
        write_config(work, _config())
        # Of a first run most of the time, of the following ones less: each must get somewhere.
        while True:
            run = Run(work)
            moment = seeded.uniform(0.1, 0.5) * duration
            if run.ended_within(moment if kills < KILLS else 3600):
                break
            run.kill()
            kills += 1
        found = _published(work)
        differing |= {
            f"{pipelines}: {name}": 0
            for name in expected.keys() | found.keys()
            if found.get(name) != expected.get(name)
        }
        left = [str(path) for top in ("results", "state") for path in (work / top).rglob("*.tmp")]
        assert not left, left
    with capsys.disabled():
        print(f"\n{kills} kills of {pipelines} pipelines, {len(differing)} files differ")
    assert not differing, sorted(differing)
