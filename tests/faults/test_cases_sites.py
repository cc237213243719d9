"""Trainings on sites without locks, flushes, names; with variables of another launcher; told to stop at any time."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
from forks import Ended, Forks
from pictures import is_refused
from sites import NOT_HERE

from tiny import tiny_config, write_config

RUN = "digits_backbone"
FILES = ["--run", f"results/runs/{RUN}/run.yaml", "--data", "results/data/digits.zip", "--state", "state"]
TRAIN = ["train", *FILES, "--output", "results/runs"]
LAUNCH = ["launch", *FILES, "--output", "results/runs"]


@pytest.fixture(scope="module")
def resolved(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with data and the configuration of a run of two steps."""
    folder, config = tmp_path_factory.mktemp("site") / "work", tiny_config()
    config["runs"][RUN] |= {"batch": 16, "images": 32, "snapshot_every": 32}
    write_config(folder, config)
    source = "results/inputs/digits/digits.csv.gz"
    block = '{"name": "digits", "resolution": 16}'
    for words in (
        ("fetch", "--source", json.dumps(config["inputs"]["digits"]), "--output", source),
        ("prepare", "--dataset", block, "--source", source, "--output", "results/data/digits.zip", "--workers", 1),
        ("resolve", "--config", "config.yaml", "--run", RUN, "--output", f"results/runs/{RUN}/run.yaml"),
    ):
        ended = forks.onestep(*words, folder=folder, limit=120)
        assert ended.code == 0, ended
    return folder


@pytest.fixture
def work(resolved: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(resolved, tmp_path / "work"))


def is_trained(work: Path) -> bool:
    summary = work / f"results/runs/{RUN}/summary.json"
    return summary.exists() and json.loads(summary.read_text())["images_seen"] == 32


@pytest.mark.parametrize("error", ["ENOSYS", "ENOLCK", "EOPNOTSUPP", "EINVAL"])
def test_a_file_system_without_locks_is_one_line_or_trains(forks: Forks, work: Path, error: str) -> None:
    ended = forks.call("faults.sites:without_locks", error, TRAIN, folder=work, limit=60)
    assert (ended.code == 0 and is_trained(work)) or is_refused(ended, "state")
    assert "another process" not in ended.text


@pytest.mark.faults
@pytest.mark.parametrize("error", ["ENOSYS", "ENOLCK", "EOPNOTSUPP"])
def test_a_launcher_without_locks_does_not_wait(forks: Forks, work: Path, error: str) -> None:
    variables = fake_slurm(work, cluster="")
    ended = forks.call("faults.sites:without_locks", error, LAUNCH, folder=work, limit=30, variables=variables)
    assert is_refused(ended, "state")


@pytest.mark.parametrize(("error", "code"), [("EINVAL", 0), ("ENOTSUP", 0), ("EOPNOTSUPP", 0), ("EIO", 1)])
def test_folders_that_cannot_be_flushed_are_passed_over(forks: Forks, work: Path, error: str, code: int) -> None:
    ended = forks.call("faults.sites:without_flushed_folders", error, TRAIN, folder=work, limit=60)
    assert ended.code == code and is_trained(work) == (code == 0) and "Traceback" not in ended.text
    if code:
        assert is_refused(ended, "state") or is_refused(ended, "results")


_NAMES = ["USER", "LOGNAME", "LNAME", "USERNAME"]


@pytest.mark.faults
@pytest.mark.parametrize(
    ("user", "host", "without"),
    [(54321, None, _NAMES), (99999, None, [*_NAMES, "HOME"]), (54321, "no-such-host", _NAMES), (1, "a.b.invalid", [])],
)
def test_a_user_and_a_host_without_a_name_train(forks: Forks, work: Path, user: int, host, without) -> None:
    ended = forks.call("faults.sites:without_a_name", user, host, without, TRAIN, folder=work, limit=240, memory=2**36)
    if ended.code == NOT_HERE:
        pytest.skip("this machine does not let its users have namespaces of their own")
    assert ended.code == 0 and is_trained(work), ended


def _port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return str(server.getsockname()[1])


@pytest.mark.parametrize(("rank", "world"), [("0", "1"), ("0", "4"), ("3", "4"), ("1", "2"), ("x", "y"), ("0", "")])
def test_one_process_ignores_the_ranks_of_another_launcher(forks: Forks, work: Path, rank: str, world: str) -> None:
    variables = {
        "RANK": rank,
        "WORLD_SIZE": world,
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": _port(),
    }
    ended = forks.onestep(*LAUNCH, folder=work, limit=25, variables=variables)
    assert ended.code == 0 and is_trained(work), ended


@pytest.mark.faults
@pytest.mark.parametrize(
    "variables", [{"RANK": "0", "WORLD_SIZE": "1"}, {"RANK": "1", "WORLD_SIZE": "2"}, {"RANK": "0"}]
)
def test_as_many_processes_train_as_are_asked_for(forks: Forks, work: Path, variables: dict[str, str]) -> None:
    more = {"LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": _port()}
    ended = forks.onestep(*TRAIN, "--processes", 2, folder=work, limit=240, memory=2**36, variables=variables | more)
    assert ended.code == 0, ended
    assert json.loads((work / f"results/runs/{RUN}/summary.json").read_text())["world_size"] == 2


@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_a_rank_that_waits_for_others_leaves_when_told(forks: Forks, work: Path, number: signal.Signals) -> None:
    variables = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": _port()}
    told = ("faults.sites:told_to_stop", int(number), 5.0, TRAIN)
    ended = forks.call(*told, folder=work, limit=30, variables=variables, memory=2**36)
    assert ended.code is not None and "Traceback" not in ended.text, ended


def test_output_that_nobody_reads_does_not_end_a_training(forks: Forks, work: Path) -> None:
    ended = forks.call("faults.sites:into_a_closed_pipe", TRAIN, folder=work, limit=60)
    assert is_trained(work) and ended.code == 0


def fake_slurm(work: Path, *, cluster: str) -> dict[str, str]:
    """Write programs that answer as those of a SLURM whose only job runs on another cluster; return the variables."""
    programs, calls = work / "bin", work / "calls"
    programs.mkdir()
    calls.touch()
    on = f" on cluster {cluster}" if cluster else ""
    scripts = {
        "sbatch": f"echo Submitted batch job $((70 + $(grep -c ^sbatch {calls}))){on}",
        "squeue": f'case "$*" in *{cluster or "jobs"}*) echo "71|RUNNING|x";; esac',
        "sacct": "true",
        "scontrol": "echo Invalid job id specified >&2; exit 1",
        "scancel": "true",
        "srun": "true",
    }
    for name, script in scripts.items():
        (programs / name).write_text(f'#!/bin/sh\necho "{name} $*" >> {calls}\n{script}\n')
        (programs / name).chmod(0o755)
    text = (work / "config.yaml").read_text()
    changes = {"backend: local": "backend: slurm", "poll_seconds: 30.0": "poll_seconds: 0.5"}
    changes |= {"grace_seconds: 180.0": "grace_seconds: 1.0"}
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    (work / "config.yaml").write_text(text)
    return {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}


@pytest.mark.faults
@pytest.mark.parametrize("option", ["clusters: other", "cluster: other", "M: other"])
def test_a_job_of_another_cluster_is_followed_there_or_not_submitted(forks: Forks, work: Path, option: str) -> None:
    variables = fake_slurm(work, cluster="other")
    text = (work / "config.yaml").read_text()
    assert "sbatch: {}" in text
    (work / "config.yaml").write_text(text.replace("sbatch: {}", f"sbatch: {{{option}}}"))
    ended = forks.onestep(*LAUNCH, folder=work, limit=25, variables=variables)
    calls = (work / "calls").read_text().splitlines()
    submitted = [call for call in calls if call.startswith("sbatch")]
    if ended.code is None:  # follows the job, which never ends
        assert len(submitted) == 1
        assert any(call.startswith("squeue") and "other" in call for call in calls)
    else:
        assert is_refused(ended, "config.yaml") and not submitted
        assert _is_of_the_config(ended)


def _is_of_the_config(ended: Ended) -> Any:
    return "launch.sbatch" in ended.text
