"""Faults of a real SLURM during trainings: the result is that of an undisturbed run, or one line gives the reason.

With ONESTEP_FAULTS=PATH the findings are written as a table.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from slurm_cluster import NODES, Slurm, until
from workplace import Driver, Workplace

from onestep.exits import Exit

pytestmark = pytest.mark.slurm

_PREFACE = """# Cost of faults for a training on SLURM

Written by `ONESTEP_FAULTS=docs/slurm_faults.md python -m pytest -m slurm tests/slurm/test_faults_on_slurm.py`:
a real SLURM of two nodes on one machine, a training of some seconds in two processes, `launch.poll_seconds` 0.5.
Each resumed run has the snapshots and the log of the undisturbed run, bit for bit; its launcher took {seconds:.0f} s.
The ranks are paused during a fault, so the time lost includes SLURM's own: here a requeued job waits for 6 s (on most
sites for 2 minutes), a dead node is detected after 15 s, and limits are checked every 30 s. Accounting may lack a
start of a job that began and ended while slurmdbd was down.

"""
# No launcher may take longer, whatever happens to its job.
_DEADLINE_SECONDS = 300.0
_USR2 = 1 << (signal.SIGUSR2 - 1)


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Result of each fault, compared with an undisturbed launcher."""

    undisturbed: Driver
    rows: list[tuple[str, ...]] = field(default_factory=list)

    def note(self, place: Workplace, *, fault: str, happened: str, resumed: bool = True) -> None:
        """Add a row about a run whose launcher has just ended."""
        seconds = place.driver.seconds
        lost = f"{max(0.0, seconds - self.undisturbed.seconds):.0f} s" if resumed else "-"
        starts = ", ".join(f"{each.id} {each.state}" for each in place.jobs)
        self.rows.append((fault, happened, starts, f"{seconds:.0f} s", lost))

    def text(self) -> str:
        """Return the content of docs/slurm_faults.md."""
        return _PREFACE.format(seconds=self.undisturbed.seconds) + self._table()

    def _table(self) -> str:
        head = ("fault", "what happened", "starts of its jobs (sacct)", "launcher's time", "time lost")
        rows = [head, ("---",) * len(head), *self.rows]
        return "".join(f"| {' | '.join(row)} |\n" for row in rows)


@pytest.fixture(scope="module")
def undisturbed(untrained: Workplace, tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """The run as it should be."""
    place = untrained.copy(tmp_path_factory.mktemp("undisturbed") / "work")
    _ends(place.launch(), 0)
    assert place.summary["restarts"] == 0
    return place


@pytest.fixture(scope="module")
def findings(undisturbed: Workplace) -> Iterator[Findings]:
    findings = Findings(undisturbed=undisturbed.driver)
    yield findings
    if path := os.environ.get("ONESTEP_FAULTS"):
        Path(path).write_text(findings.text())


def _ends(launcher: Driver, code: int) -> str:
    """Wait for a launcher's end with an exit code; return its output."""
    return launcher.ends(code, seconds=_DEADLINE_SECONDS)


def _finishes(place: Workplace, undisturbed: Workplace, *, starts: int, jobs: int = 1) -> None:
    """Check the result of a run and the number of its jobs and of their starts; only the last job has several.

    The jobs come from accounting, the state of the last one from the controller: slurmdbd may miss a start during which
    it was down, and the end of one that took some seconds.
    """
    _ends(place.driver, 0)
    assert place.result == undisturbed.result
    until(lambda: place.slurm.state(place.job) == "COMPLETED", seconds=60, what="the job completes")
    assert place.slurm.restarts(place.job) == starts - jobs
    assert len({each.id for each in place.jobs}) == jobs, place.jobs


def _preempt(slurm: Slurm, place: Workplace, *, warned: bool) -> None:
    """Let a job of the higher partition take the whole node, for a moment.

    A halted training continues when it has received its signal, if it receives one (`warned`).
    """
    options = ("--partition", "high", "--nodelist", slurm.nodes_of(place.job), "--exclusive")
    urgent = slurm.submit("sleep 600", *options)
    if warned:
        _await_signal(place)
        place.resume()
    until(lambda: slurm.state(urgent) == "RUNNING", seconds=60, what="the urgent job runs")
    slurm.command("scancel", str(urgent))


def test_a_preempted_job_saves_its_state_and_resumes(slurm, place, undisturbed, findings):
    place.configure(launch={"partition": "main", "state_seconds": 3600.0})
    place.launch()
    place.halts()
    _preempt(slurm, place, warned=True)
    _finishes(place, undisturbed, starts=2)
    # Without the signal there is no state to resume from: launch.state_seconds is an hour.
    assert place.summary["restarts"] == 1
    findings.note(place, fault="preemption with a signal", happened="state saved, requeued, resumed")


def test_a_job_preempted_without_a_signal_resumes_from_its_last_state(slurm, place, undisturbed, findings):
    place.configure(launch={"partition": "abrupt"})
    place.launch()
    place.saves().halts(320)
    _preempt(slurm, place, warned=False)
    _finishes(place, undisturbed, starts=2)
    assert place.summary["restarts"] == 1
    findings.note(place, fault="preemption without signal and grace", happened="requeued, resumed from its last state")


def test_a_job_that_is_cancelled_by_preemption_is_submitted_again(slurm, place, undisturbed, findings):
    # With a moment of grace it saves its state and puts itself back.
    slurm.command("scontrol", "update", "PartitionName=lost", "GraceTime=0")
    place.configure(launch={"partition": "lost", "grace_seconds": 5.0})
    place.launch()
    place.saves().halts(320)
    _preempt(slurm, place, warned=False)
    _finishes(place, undisturbed, starts=2, jobs=2)
    until(lambda: place.jobs[0].state == "PREEMPTED", seconds=60, what="accounting has the end of the first job")
    assert len(place.events("submitted")) == 2
    findings.note(place, fault="preemption that cancels", happened="submitted again after launch.grace_seconds (5 s)")


def test_a_time_limit_is_one_more_start(slurm, place, undisturbed, findings):
    place.configure(launch={"hours": 2 / 60, "signal_seconds": 45, "state_seconds": 3600.0})
    place.launch()
    place.halts()
    # SLURM checks limits about every half minute.
    _await_signal(place)
    place.resume()
    _finishes(place, undisturbed, starts=2)
    assert place.summary["restarts"] == 1
    findings.note(place, fault="time limit (2 minutes)", happened="signal 45 s before it, state saved, resumed")


def _await_signal(place: Workplace) -> None:
    """Wait until each rank has a pending signal of SLURM."""
    until(lambda: all(map(_is_signalled, place.ranks())), seconds=90, what="the signal before the end")


def _is_signalled(process: int) -> bool:
    status = Path(f"/proc/{process}/status").read_text().splitlines()
    masks = [line.split()[1] for line in status if line.startswith(("ShdPnd:", "SigPnd:"))]
    return any(int(mask, 16) & _USR2 for mask in masks)


def test_a_requeue_from_outside_is_one_more_start(slurm, place, undisturbed, findings):
    place.launch()
    place.halts()
    slurm.command("scontrol", "requeue", str(place.job))
    _finishes(place, undisturbed, starts=2)
    findings.note(place, fault="`scontrol requeue` by hand", happened="resumed at the next start of the job")


def test_a_cancelled_job_gets_no_successor(slurm, place, undisturbed, findings):
    launcher = place.launch()
    place.halts()
    slurm.command("scancel", str(place.job))
    cancelled_at = time.monotonic()
    output = _ends(launcher, Exit.FAILED)
    assert time.monotonic() - cancelled_at < 60
    assert "CANCELLED" in output.splitlines()[-1]
    findings.note(place, fault="`scancel` by hand", happened="the launcher ends with one line", resumed=False)
    place.launch()
    _finishes(place, undisturbed, starts=2, jobs=2)
    assert place.summary["restarts"] == 1


def test_a_dead_node_costs_a_start(slurm, place, undisturbed, findings):
    place.launch()
    place.saves().halts(320)
    node = slurm.nodes_of(place.job)
    slurm.kill_node(node)
    _finishes(place, undisturbed, starts=2)
    until(lambda: place.jobs[0].state == "NODE_FAIL", seconds=60, what="accounting has the end of the first start")
    (other,) = set(NODES) - {node}
    assert slurm.nodes_of(place.job) == other
    findings.note(place, fault="the node dies", happened="requeued by SLURM on the other node, resumed")


def test_accounting_may_be_down_all_the_time(slurm, place, undisturbed, findings):
    slurm.stop_accounting()
    stopped_at = time.monotonic()
    launcher = place.launch()
    place.halts()
    slurm.command("scontrol", "requeue", str(place.job))
    _ends(launcher, 0)
    time.sleep(max(0.0, 60 - (time.monotonic() - stopped_at)))
    slurm.start_accounting()
    _finishes(place, undisturbed, starts=2)
    findings.note(place, fault="slurmdbd down, and a requeue", happened="requeued and resumed as with it")


def test_a_forgotten_job_is_decided_by_its_files(slurm, place, undisturbed, findings, tmp_path):
    environment, other = slurm.without("sacct"), place.copy(tmp_path / "other")
    with slurm.forgetful(seconds=2):
        failed = place.launch(environment=environment)
        place.halts()
        # This launcher queries again once SLURM has forgotten the job.
        failed.process.send_signal(signal.SIGSTOP)
        os.kill(place.ranks()[0], signal.SIGKILL)
        finished = other.launch(environment=environment)
        other.trains()
        finished.process.send_signal(signal.SIGSTOP)
        for each in (place, other):
            until(lambda: not _is_known(slurm, each.job), seconds=180, what="the job is forgotten")  # noqa: B023
            each.driver.process.send_signal(signal.SIGCONT)
        assert "failed with exit code" in _ends(failed, Exit.FAILED).splitlines()[-1]
        _ends(finished, 0)
    assert other.result == undisturbed.result
    happened = "decided by exit_code and done.json"
    findings.note(other, fault="no sacct, job forgotten by squeue", happened=happened, resumed=False)
    place.launch()
    _finishes(place, undisturbed, starts=2, jobs=2)


def _is_known(slurm: Slurm, job: int) -> bool:
    asked = ["squeue", "--noheader", "--states", "all", "--jobs", str(job)]
    found = subprocess.run(asked, env=slurm.environment, capture_output=True, text=True, timeout=60)
    return str(job) in found.stdout


def test_a_rank_that_dies_ends_the_job_at_once(slurm, place, undisturbed, findings):
    launcher = place.launch()
    place.halts()
    os.kill(place.ranks()[-1], signal.SIGKILL)
    killed_at = time.monotonic()
    output = _ends(launcher, Exit.FAILED)
    assert time.monotonic() - killed_at < 90
    assert f"{place.job}_0_log.out, its last lines:" in output
    assert "failed with exit code" in output.splitlines()[-1]
    findings.note(place, fault="`kill -9` of a rank", happened="the job fails, last lines of its log", resumed=False)
    place.launch()
    _finishes(place, undisturbed, starts=2, jobs=2)


def test_a_controller_that_is_away_is_waited_for(slurm, place, undisturbed, findings):
    slurm.stop_controller()
    # Accounting would show the job as running.
    launcher = place.launch(environment=slurm.without("sacct"))
    launcher.awaits("squeue does not answer", seconds=60)
    slurm.start_controller()
    place.halts()
    slurm.stop_controller()
    launcher.awaits("SLURM does not answer", seconds=60)
    slurm.start_controller()
    place.resume()
    _finishes(place, undisturbed, starts=1)
    happened = "the launcher waits, the job continues"
    findings.note(place, fault="slurmctld down, at submission and later", happened=happened)


def test_a_job_without_gpus_fails_in_its_first_minute(place, findings):
    place.configure(launch={"device": "cuda"})
    launcher = place.launch()
    output = _ends(launcher, Exit.FAILED)
    assert launcher.seconds < 120
    assert "launch.processes_per_node: got 0 GPUs in rank 0" in output.splitlines()[-1]
    happened = "the first check fails with one line that names the key"
    findings.note(place, fault="no GPU where one is requested", happened=happened, resumed=False)


def test_requeues_that_are_used_up_lead_to_another_job(slurm, place, undisturbed, findings):
    place.configure(launch={"requeues": 0})
    place.launch()
    place.halts()
    _signal_to_stop(slurm, place)
    _finishes(place, undisturbed, starts=2, jobs=2)
    findings.note(place, fault="signal to stop, launch.requeues 0", happened="state saved, submitted again")


def test_requeues_and_resubmissions_that_are_used_up_end_in_one_line(slurm, place, undisturbed, findings):
    place.configure(launch={"requeues": 0, "resubmissions": 0})
    launcher = place.launch()
    place.halts()
    _signal_to_stop(slurm, place)
    assert f"job {place.job}: " in _ends(launcher, Exit.FAILED).splitlines()[-1]
    assert len(place.events("failed")) == len(place.events("submitted")) == 1
    happened = "state saved, the launcher ends with one line"
    findings.note(place, fault="signal to stop, requeues and resubmissions 0", happened=happened, resumed=False)
    place.configure()
    place.launch()
    _finishes(place, undisturbed, starts=2, jobs=2)


def _signal_to_stop(slurm: Slurm, place: Workplace) -> None:
    place.resume()
    slurm.command("scancel", "--signal=USR2", str(place.job))
