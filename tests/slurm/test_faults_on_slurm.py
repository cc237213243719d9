"""What clusters do to a job, done to trainings on a real SLURM: they end as if nothing had happened, or say why not.

With ONESTEP_FAULTS=PATH the findings are written down as a table.
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
from launches import Launch, Result, Site
from slurm_cluster import NODES, Slurm, until

pytestmark = pytest.mark.slurm

_PREFACE = """# What faults cost a training on SLURM

Written by `ONESTEP_FAULTS=docs/faults.md python -m pytest -m slurm tests/slurm/test_faults_on_slurm.py`: a real SLURM
of two nodes on one machine, a training of some seconds in two processes, `launch.poll_seconds` 0.5. Each run that went
on ended with snapshots and a log that are bitwise those of the undisturbed run, whose launcher took {seconds:.0f} s.
The ranks are held while a fault strikes, so the time lost includes SLURM's own: here a requeued job waits for 6 s (on
most sites for 2 minutes), a dead node is noticed after 15 s, and limits are looked at every 30 s.

"""
_USR2 = 1 << (signal.SIGUSR2 - 1)


@dataclass(frozen=True, kw_only=True)
class Undisturbed:
    """The run as it should be.

    Attributes:
        result: What it publishes.
        seconds: How long its launcher took.
    """

    result: Result
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What came of each fault."""

    undisturbed: Undisturbed
    rows: list[tuple[str, ...]] = field(default_factory=list)

    def note(self, launch: Launch, *, fault: str, happened: str, resumed: bool = True) -> None:
        """Add a row about a launch that has just ended."""
        seconds = launch.seconds
        lost = f"{max(0.0, seconds - self.undisturbed.seconds):.0f} s" if resumed else "-"
        lives = ", ".join(f"{job} {state}" for job, state in launch.lives())
        self.rows.append((fault, happened, lives, f"{seconds:.0f} s", lost))

    def text(self) -> str:
        """Return all that docs/faults.md says."""
        return _PREFACE.format(seconds=self.undisturbed.seconds) + self._table()

    def _table(self) -> str:
        head = ("fault", "what happened", "lives of its jobs (sacct)", "launcher's time", "time lost")
        rows = [head, ("---",) * len(head), *self.rows]
        return "".join(f"| {' | '.join(row)} |\n" for row in rows)


@pytest.fixture(scope="module")
def site(cluster: Slurm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with Site.prepared(tmp_path_factory.mktemp("faults"), slurm=cluster) as site:
        yield site


@pytest.fixture(scope="module")
def undisturbed(site: Site) -> Undisturbed:
    launch = site.launch("undisturbed")
    assert launch.ends() == 0, launch.said
    assert launch.history["restarts"] == 0
    return Undisturbed(result=launch.result, seconds=launch.seconds)


@pytest.fixture(scope="module")
def findings(undisturbed: Undisturbed) -> Iterator[Findings]:
    findings = Findings(undisturbed=undisturbed)
    yield findings
    if path := os.environ.get("ONESTEP_FAULTS"):
        Path(path).write_text(findings.text())


def _finishes(launch: Launch, undisturbed: Undisturbed, *, lives: int, jobs: int = 1) -> None:
    """See that a run ends as the undisturbed one, in so many lives of so many jobs; only the last job has several.

    Accounting says which jobs there were. What became of the last one is the controller's to say: slurmdbd need not
    ever learn of a life that began and ended without it, nor of the end of one that lasted some seconds.
    """
    assert launch.ends() == 0, launch.said
    assert launch.result == undisturbed.result
    until(lambda: launch.slurm.state(launch.job) == "COMPLETED", seconds=60, what="the job completes")
    assert launch.slurm.restarts(launch.job) == lives - jobs
    until(lambda: launch.job in _jobs(launch), seconds=60, what=f"accounting knows {launch.job}")
    assert len(_jobs(launch)) == jobs, launch.lives()


def _jobs(launch: Launch) -> set[int]:
    return {job for job, _ in launch.lives()}


def _first_end(launch: Launch) -> str:
    """Return how the first life of the run's jobs ended, says accounting."""
    return launch.lives()[0][1]


def _preempt(slurm: Slurm, launch: Launch, *, warned: bool) -> None:
    """Let a job of the higher partition take the whole node, for a moment.

    A training that halts goes on when it has got its signal, if it gets one (`warned`).
    """
    options = ("--partition", "high", "--nodelist", slurm.nodes_of(launch.job), "--exclusive")
    urgent = slurm.submit("sleep 600", *options)
    if warned:
        _await_signal(launch)
        launch.goes_on()
    until(lambda: slurm.state(urgent) == "RUNNING", seconds=60, what="the urgent job runs")
    slurm.command("scancel", str(urgent))


def test_a_preempted_job_saves_its_state_and_goes_on(slurm, site, undisturbed, findings):
    launch = site.launch("preempted", partition="main", state_seconds=3600.0).halts()
    _preempt(slurm, launch, warned=True)
    _finishes(launch, undisturbed, lives=2)
    assert launch.history["restarts"] == 1
    assert "stopped by a signal at" in launch.said
    findings.note(launch, fault="preemption with a signal", happened="state saved, requeued, resumed")


def test_a_job_preempted_without_a_word_goes_on_from_its_last_state(slurm, site, undisturbed, findings):
    launch = site.launch("abrupt", partition="abrupt").halts(320)
    _preempt(slurm, launch, warned=False)
    _finishes(launch, undisturbed, lives=2)
    assert launch.history["restarts"] == 1
    findings.note(launch, fault="preemption without signal and grace", happened="requeued, resumed from its last state")


def test_a_job_that_is_cancelled_by_preemption_is_submitted_anew(slurm, site, undisturbed, findings):
    # With a moment of grace it saves its state and puts itself back.
    slurm.command("scontrol", "update", "PartitionName=lost", "GraceTime=0")
    launch = site.launch("lost", partition="lost", grace_seconds=5.0).halts(320)
    _preempt(slurm, launch, warned=False)
    _finishes(launch, undisturbed, lives=2, jobs=2)
    until(lambda: _first_end(launch) == "PREEMPTED", seconds=60, what="accounting knows how the first job ended")
    assert "submitting it anew" in launch.said
    findings.note(launch, fault="preemption that cancels", happened="submitted anew after launch.grace_seconds (5 s)")


def test_a_time_limit_is_one_more_life(slurm, site, undisturbed, findings):
    launch = site.launch("limited", hours=2 / 60, signal_seconds=45, state_seconds=3600.0).halts()
    # SLURM looks at limits about every half minute.
    _await_signal(launch)
    launch.goes_on()
    _finishes(launch, undisturbed, lives=2)
    assert "stopped by a signal at" in launch.said
    findings.note(launch, fault="time limit (2 minutes)", happened="told 45 s before it, state saved, resumed")


def _await_signal(launch: Launch) -> None:
    """Wait until SLURM has told each rank that the job is to leave."""
    until(lambda: all(map(_is_signalled, launch.ranks())), seconds=90, what="the signal before the end")


def _is_signalled(process: int) -> bool:
    status = Path(f"/proc/{process}/status").read_text().splitlines()
    masks = [line.split()[1] for line in status if line.startswith(("ShdPnd:", "SigPnd:"))]
    return any(int(mask, 16) & _USR2 for mask in masks)


def test_a_requeue_from_outside_is_one_more_life(slurm, site, undisturbed, findings):
    launch = site.launch("requeued").halts()
    slurm.command("scontrol", "requeue", str(launch.job))
    _finishes(launch, undisturbed, lives=2)
    findings.note(launch, fault="`scontrol requeue` by hand", happened="resumed in the next life of the job")


def test_who_cancels_a_job_does_not_want_another(slurm, site, undisturbed, findings):
    launch = site.launch("cancelled").halts()
    slurm.command("scancel", str(launch.job))
    cancelled_at = time.monotonic()
    assert launch.ends() == 1
    assert time.monotonic() - cancelled_at < 60
    assert "CANCELLED" in launch.said.splitlines()[-1]
    findings.note(launch, fault="`scancel` by hand", happened="the launcher ends with one line", resumed=False)
    again = site.launch("cancelled")
    _finishes(again, undisturbed, lives=2, jobs=2)
    assert again.history["restarts"] == 1


def test_a_dead_node_costs_a_life(slurm, site, undisturbed, findings):
    launch = site.launch("node_died").halts(320)
    node = slurm.nodes_of(launch.job)
    slurm.kill_node(node)
    _finishes(launch, undisturbed, lives=2)
    until(lambda: _first_end(launch) == "NODE_FAIL", seconds=60, what="accounting knows how the first life ended")
    (other,) = set(NODES) - {node}
    assert slurm.nodes_of(launch.job) == other
    findings.note(launch, fault="the node dies", happened="requeued by SLURM on the other node, resumed")


def test_accounting_may_be_down_all_the_time(slurm, site, undisturbed, findings):
    slurm.stop_accounting()
    stopped_at = time.monotonic()
    launch = site.launch("unaccounted").halts()
    slurm.command("scontrol", "requeue", str(launch.job))
    assert launch.ends() == 0, launch.said
    time.sleep(max(0.0, 60 - (time.monotonic() - stopped_at)))
    slurm.start_accounting()
    _finishes(launch, undisturbed, lives=2)
    findings.note(launch, fault="slurmdbd down, and a requeue", happened="requeued and resumed as with it")


def test_a_forgotten_job_is_judged_by_what_it_left(slurm, site, undisturbed, findings):
    environment = slurm.without("sacct")
    with slurm.forgetful(seconds=2):
        failed = site.launch("forgotten", environment=environment).halts()
        # This one looks again when nobody remembers the job.
        failed.process.send_signal(signal.SIGSTOP)
        os.kill(failed.ranks()[0], signal.SIGKILL)
        finished = site.launch("forgotten_finished", environment=environment).trains()
        finished.process.send_signal(signal.SIGSTOP)
        for launch in (failed, finished):
            until(lambda: not _is_known(slurm, launch.job), seconds=180, what="the job is forgotten")  # noqa: B023
            launch.process.send_signal(signal.SIGCONT)
        assert failed.ends() == 1, failed.said
        assert "failed with exit code" in failed.said.splitlines()[-1]
        assert finished.ends() == 0, finished.said
    assert finished.result == undisturbed.result
    happened = "judged by exit_code and done.json"
    findings.note(finished, fault="no sacct, job forgotten by squeue", happened=happened, resumed=False)
    _finishes(site.launch("forgotten"), undisturbed, lives=2, jobs=2)


def _is_known(slurm: Slurm, job: int) -> bool:
    asked = ["squeue", "--noheader", "--states", "all", "--jobs", str(job)]
    found = subprocess.run(asked, env=slurm.environment, capture_output=True, text=True, timeout=60)
    return str(job) in found.stdout


def test_a_rank_that_dies_ends_the_job_at_once(slurm, site, undisturbed, findings):
    launch = site.launch("rank_died").halts()
    os.kill(launch.ranks()[-1], signal.SIGKILL)
    killed_at = time.monotonic()
    assert launch.ends() == 1
    assert time.monotonic() - killed_at < 90
    assert f"{launch.job}_0_log.out, its last lines:" in launch.said
    assert "failed with exit code" in launch.said.splitlines()[-1]
    findings.note(launch, fault="`kill -9` of a rank", happened="the job fails, last lines of its log", resumed=False)
    again = site.launch("rank_died")
    _finishes(again, undisturbed, lives=2, jobs=2)


def test_a_controller_that_is_away_is_waited_for(slurm, site, undisturbed, findings):
    slurm.stop_controller()
    # Accounting would say that the job runs.
    launch = site.launch("uncontrolled", environment=slurm.without("sacct"))
    until(lambda: "squeue does not answer" in launch.said, seconds=60, what="the launcher cannot submit")
    slurm.start_controller()
    launch.halts()
    slurm.stop_controller()
    until(lambda: "SLURM does not answer" in launch.said, seconds=60, what="the launcher has seen it")
    slurm.start_controller()
    launch.goes_on()
    _finishes(launch, undisturbed, lives=1)
    findings.note(
        launch, fault="slurmctld down, at submission and later", happened="the launcher waits, the job trains on"
    )


def test_a_job_without_gpus_fails_in_its_first_minute(slurm, site, findings):
    launch = site.launch("blind", device="cuda")
    assert launch.ends() == 1
    assert time.monotonic() - launch.begun < 120
    assert "launch.processes_per_node: rank 0 on" in launch.said.splitlines()[-1]
    happened = "the first check fails with one line that names `launch`"
    findings.note(launch, fault="no GPU where one is asked for", happened=happened, resumed=False)


def test_requeues_that_are_used_up_make_way_for_another_job(slurm, site, undisturbed, findings):
    launch = site.launch("not_requeued", requeues=0).halts()
    _ask_to_stop(slurm, launch)
    _finishes(launch, undisturbed, lives=2, jobs=2)
    findings.note(launch, fault="told to stop, launch.requeues 0", happened="state saved, submitted anew")


def test_requeues_and_resubmissions_that_are_used_up_end_in_one_line(slurm, site, undisturbed, findings):
    launch = site.launch("ended", requeues=0, resubmissions=0).halts()
    _ask_to_stop(slurm, launch)
    assert launch.ends() == 1
    assert "saved its state and stopped" in launch.said.splitlines()[-1]
    happened = "state saved, the launcher ends with one line"
    findings.note(launch, fault="told to stop, requeues and resubmissions 0", happened=happened, resumed=False)
    again = site.launch("ended")
    _finishes(again, undisturbed, lives=2, jobs=2)


def _ask_to_stop(slurm: Slurm, launch: Launch) -> None:
    launch.goes_on()
    slurm.command("scancel", "--signal=USR2", str(launch.job))
