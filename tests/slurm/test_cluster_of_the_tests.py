"""The cluster that other tests here rely on does what real ones do to a job."""

from __future__ import annotations

import shutil
import socket
import struct
import subprocess
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
from slurm_cluster import until

pytestmark = pytest.mark.slurm


def test_it_listens_on_loopback_alone(slurm):
    ports = {
        int(line.rpartition("=")[2])
        for name in ("slurm.conf", "slurmdbd.conf", "my.cnf")
        for line in (slurm.root / "etc" / name).read_text().splitlines()
        if line.lower().startswith(("port=", "slurmctldport=", "slurmdport=", "dbdport="))
    }
    listening = {}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, _, state, *_ = line.split()
        address, port = local.split(":")
        if state == "0A" and int(port, 16) in ports:
            listening[int(port, 16)] = socket.inet_ntoa(struct.pack("<I", int(address, 16)))
    assert set(listening) == ports
    assert set(listening.values()) == {"127.0.0.1"}


def test_a_job_is_remembered_with_its_request(slurm):
    job = slurm.submit("true", "--job-name", "remembered", "--gres", "gpu:a100:8", "--nodes", "2", "--comment", "why")
    until(lambda: [each.state for each in slurm.jobs("remembered")] == ["COMPLETED"], seconds=30, what="it is done")
    (remembered,) = slurm.jobs("remembered")
    assert (remembered.id, remembered.comment, remembered.nodes) == (job, "why", "n[1-2]")
    assert (remembered.requested["gres/gpu"], remembered.allocated["gres/gpu:a100"]) == ("16", "16")


def test_a_dead_node_takes_its_tasks_along_and_its_job_starts_again_elsewhere(slurm, tmp_path):
    starts, beat = tmp_path / "starts", tmp_path / "beat"
    script = f'echo "$SLURMD_NODENAME $SLURM_RESTART_COUNT" >>{starts}'
    script += f"; srun sh -c 'while sleep 0.2; do echo $SLURMD_NODENAME >>{beat}; done'"
    job = slurm.submit(script, "--job-name", "starts", "--requeue", "--nodelist", "n1")
    until(beat.exists, seconds=30, what="it runs")
    slurm.kill_node("n1")
    beaten = beat.read_text()
    time.sleep(1)
    assert beat.read_text() == beaten
    until(lambda: slurm.node_state("n1").startswith("down"), seconds=60, what="SLURM has seen it")
    slurm.command("scontrol", "update", f"JobId={job}", "ReqNodeList=")
    until(lambda: starts.read_text() == "n1 \nn2 1\n", seconds=60, what="its second start")
    slurm.revive_node("n1")
    assert [each.state for each in slurm.jobs("starts")] == ["NODE_FAIL", "RUNNING"]


def test_accounting_stops_and_catches_up(slurm):
    slurm.stop_accounting()
    refused = subprocess.run(["sacct"], env=slurm.environment, capture_output=True, text=True)
    assert refused.returncode == 1
    job = slurm.submit("true", "--job-name", "unseen")
    until(lambda: slurm.state(job) == "COMPLETED", seconds=30, what="it is done")
    slurm.start_accounting()
    until(lambda: [each.state for each in slurm.jobs("unseen")] == ["COMPLETED"], seconds=60, what="it is known")


def test_a_command_can_be_missing(slurm):
    lacking = slurm.without("sacct")
    assert shutil.which("sacct", path=slurm.environment["PATH"]) is not None
    assert shutil.which("sacct", path=lacking["PATH"]) is None
    assert subprocess.run(["squeue"], env=lacking, capture_output=True).returncode == 0


@pytest.mark.parametrize("sends_signal", [True, False])
def test_preemption_signals_a_job_before_it_or_not(slurm, tmp_path, sends_signal):
    heard = tmp_path / "heard"
    script = f"trap 'echo USR2 >>{heard}; exit 1' USR2; echo start >>{heard}; sleep 600 & wait"
    with nullcontext() if sends_signal else slurm.preempting_without_signal():
        victim = slurm.submit(script, "--requeue", "--nodelist", "n1", "--signal", "B:USR2@60", "--partition", "abrupt")
        until(heard.exists, seconds=30, what="it runs")
        urgent = slurm.submit("sleep 600", "--partition", "high", "--nodelist", "n1", "--exclusive")
        until(lambda: slurm.state(urgent) == "RUNNING", seconds=60, what="the urgent one runs")
        slurm.command("scancel", str(urgent))
        until(lambda: slurm.state(victim) == "RUNNING", seconds=60, what="its second start")
    told = ["start", "USR2", "start"] if sends_signal else ["start", "start"]
    until(lambda: heard.read_text().split() == told, seconds=10, what=f"it heard {told}")


def test_the_lost_are_not_requeued(slurm):
    victim = slurm.submit("sleep 600", "--partition", "lost", "--nodelist", "n1", "--job-name", "lost", "--requeue")
    until(lambda: slurm.state(victim) == "RUNNING", seconds=30, what="it runs")
    slurm.submit("true", "--partition", "high", "--nodelist", "n1", "--exclusive")
    until(lambda: [each.state for each in slurm.jobs("lost")] == ["PREEMPTED"], seconds=60, what="it is lost")
