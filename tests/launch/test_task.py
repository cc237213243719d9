"""Ranks of a SLURM job, run as submitit runs them under SLURM's variables: checks of the allocation, exit codes."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import cloudpickle
import numpy as np
import pytest
import yaml
from submitit.core.utils import DelayedSubmission

from image_archives import write_archive
from onestep.components import module_of
from onestep.config import read_experiment, run_document
from onestep.exits import Exit
from onestep.fingerprint import STAGES, Fingerprints, training_components
from onestep.launch.task import TrainingTask, port_of
from onestep.training.assignment import Assignment, Inputs
from preloaded import Program
from tiny import tiny_config, write_config

# Ports follow from it, and tests run side by side.
JOB = str(os.getpid())
SUBMITTED = "submitit.core._submit"


def task(folder, *, nodes=1, processes_per_node=2, device="cpu", run="run.yaml"):
    """Return a task that trains the run in `folder`."""
    inputs = Inputs(run=folder / run, data=folder / "d.zip")
    assignment = Assignment(inputs=inputs, state=folder / "state", code_in_spec=False, state_seconds=300.0)
    return TrainingTask(
        assignment=assignment,
        nodes=nodes,
        processes_per_node=processes_per_node,
        cpus_per_process=1,
        device=device,
        lock_seconds=0.0,
    )


def start(folder, what, *, rank=0, ranks=2, afresh=False, **environment):
    """Start one rank of a job of one node; `environment` changes SLURM's variables.

    Its process begins imported, or `afresh` with the command of submitit.
    """
    log = folder / "submitit"
    log.mkdir(exist_ok=True)
    DelayedSubmission(what).dump(log / f"{JOB}_submitted.pkl")
    printed = {
        "SUBMITIT_EXECUTOR": "slurm",
        "SLURM_JOB_ID": JOB,
        "SLURM_NTASKS": str(ranks),
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_JOB_NODELIST": "localhost",
        "SLURM_NODEID": "0",
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank),
        "SLURM_STEP_TASKS_PER_NODE": str(ranks),
        "MASTER_ADDR": "nowhere.invalid",
        "MASTER_PORT": "1",
    }
    variables = os.environ | printed | environment
    if not afresh:
        return Program(Path(find_spec(SUBMITTED).origin), str(log), environment=variables, apart=True)
    command = [sys.executable, "-u", "-m", SUBMITTED, str(log)]
    return subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def start_both(folder, **environment):
    return [start(folder, task(folder), rank=rank, **environment) for rank in range(2)]


def ends(ranks):
    """Return the exit codes of ranks, and the stderr of each."""
    printed = [rank.communicate(timeout=300)[1] for rank in ranks]
    return [rank.returncode for rank in ranks], printed


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"SLURM_JOB_NUM_NODES": "3"}, ("launch.nodes", "got 3", "expected 2")),
        ({"SLURM_NTASKS": "2"}, ("launch.processes_per_node", "got 2", "expected 4")),
        ({"SLURM_STEP_TASKS_PER_NODE": "3,1"}, ("launch.processes_per_node", "got 3, 1", "expected 2")),
    ],
)
def test_a_job_of_another_layout_is_refused_in_one_line(tmp_path, environment, expected):
    fitting = {"SLURM_JOB_NUM_NODES": "2", "SLURM_NTASKS": "4", "SLURM_STEP_TASKS_PER_NODE": "2(x2)"}
    (code,), (printed,) = ends([start(tmp_path, task(tmp_path, nodes=2), **fitting | environment)])
    assert code == Exit.WRONG_INPUT
    assert printed.startswith(f"error: {expected[0]}: ") and len(printed.splitlines()) == 1
    assert all(part in printed for part in expected)


def test_a_rank_that_sees_no_gpu_of_its_own_is_refused(tmp_path):
    blind = {"CUDA_VISIBLE_DEVICES": ""}
    (code,), (printed,) = ends([start(tmp_path, task(tmp_path, device="cuda"), **blind)])
    assert code == Exit.WRONG_INPUT
    assert "error: launch.processes_per_node: got 0 GPUs in rank 0" in printed and "expected 2" in printed
    assert "Traceback" not in printed


def test_an_absent_run_is_refused_in_one_line(tmp_path):
    (code,), (printed,) = ends([start(tmp_path, task(tmp_path, processes_per_node=1), ranks=1)])
    assert code == Exit.WRONG_INPUT and str(tmp_path / "run.yaml") in printed and "Traceback" not in printed


@pytest.fixture
def work(tmp_path):
    """A folder with the tiny run, on noise."""
    document = run_document(read_experiment(write_config(tmp_path, tiny_config())), "digits_edm")
    changes = {"images": 64_000, "snapshots": [64_000]}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(document | changes))
    pixels = np.random.RandomState(0).randint(256, size=(40, 1, 16, 16)).astype(np.uint8)
    write_archive(tmp_path / "d.zip", ((image, index % 10) for index, image in enumerate(pixels)))
    return tmp_path


def test_a_signalled_job_saves_marks_it_and_resumes_in_its_next_start(work):
    for rank in range(2):
        (work / "submitit").mkdir(exist_ok=True)
        (work / f"submitit/{JOB}_{rank}_result.pkl").write_bytes(b"of an earlier start")
    ranks = start_both(work)
    _wait_for(lambda: list(work.glob("state/*/*/log.jsonl")) and b"\n" in _only(work, "log.jsonl").read_bytes())
    for rank in ranks:
        rank.send_signal(signal.SIGCONT)
    ranks[1].send_signal(signal.SIGUSR2)
    codes, (leader, other) = ends(ranks)
    assert codes == [Exit.STOPPED] * 2, leader + other
    assert _only(work, "stopped.*").name == f"stopped.{JOB}.0" and _only(work, "state-*")
    assert str(_only(work, "log.jsonl").parent) in leader and other == ""
    assert not list((work / "submitit").glob("*_result.pkl"))
    records = _only(work, "log.jsonl").read_bytes()
    ranks = start_both(work, SLURM_RESTART_COUNT="1")
    _wait_for(lambda: len(_only(work, "log.jsonl").read_bytes().splitlines()) > 5)
    ranks[0].send_signal(signal.SIGTERM)
    codes, (leader, other) = ends(ranks)
    assert codes == [Exit.STOPPED] * 2 and other == ""
    # A training from the start would have other times in its first records.
    assert _only(work, "log.jsonl").read_bytes().startswith(records)
    assert sorted(path.name for path in work.glob("state/*/*/stopped.*")) == [f"stopped.{JOB}.0", f"stopped.{JOB}.1"]


def _only(work, name):
    (path,) = work.glob(f"state/*/*/{name}")
    return path


def _wait_for(condition):
    deadline = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < deadline, "nothing within four minutes"
        time.sleep(0.05)


def test_a_job_that_finishes_leaves_its_result_and_publishes_nothing(work):
    document = yaml.safe_load((work / "run.yaml").read_text())
    (work / "run.yaml").write_text(yaml.safe_dump(document | {"images": 64, "snapshots": [64]}))
    codes, printed = ends([start(work, task(work, processes_per_node=1), ranks=1, afresh=True)])
    assert codes == [Exit.FINISHED], printed
    assert _only(work, "done.json") and not list(work.glob("state/*/*/stopped.*"))
    assert pickle.loads((work / f"submitit/{JOB}_0_result.pkl").read_bytes()) == ("success", None)


def test_what_training_refuses_is_one_line(work):
    document = yaml.safe_load((work / "run.yaml").read_text())
    (work / "run.yaml").write_text(yaml.safe_dump(document | {"batch": 33}))
    codes, printed = ends(start_both(work))
    assert codes == [Exit.WRONG_INPUT] * 2
    assert all("error: " in each and "batch" in each and "33" in each for each in printed)
    assert not any("Traceback" in each for each in printed)


def test_a_task_is_kept_as_a_name_and_its_arguments(tmp_path):
    kept = cloudpickle.dumps(task(tmp_path))
    assert b"onestep.launch.task" in kept and len(kept) < 1000
    assert pickle.loads(kept) == task(tmp_path)


def test_a_port_that_is_taken_costs_a_start(work):
    what = task(work)
    with socket.create_server(("127.0.0.1", port_of(int(JOB), restarts=1))):
        folder = what.assignment.folder("any code")
        folder.mkdir(parents=True)
        (code,), _ = ends([start(work, what, SLURM_RESTART_COUNT="1")])
    assert code == Exit.STOPPED
    assert [path.name for path in folder.iterdir()] == [f"stopped.{JOB}.1"]


def test_ports_differ_between_jobs_and_between_the_starts_of_one():
    ports = {port_of(job, restarts=restarts) for job in range(19_990, 20_090) for restarts in range(7)}
    assert len(ports) == 700 and min(ports) >= 20_000 and max(ports) < 30_000


def test_how_a_training_is_launched_is_no_part_of_its_code():
    document = run_document(read_experiment("demo/config.yaml"), "digits_d2o")
    components = [module_of(family, name) for family, name in training_components(document)]
    closure = Fingerprints().closure([*STAGES["train"], *components])
    assert "onestep.training.stopping" in closure and "onestep.exits" not in closure
    assert not any(name.startswith("onestep.launch") for name in closure)


def test_an_unexpected_error_keeps_its_traceback(work):
    (work / "state").write_bytes(b"")  # where the folder of states belongs
    (code,), (printed,) = ends([start(work, task(work, processes_per_node=1), ranks=1)])
    assert code == Exit.FAILED and "Traceback" in printed and str(work / "state") in printed
