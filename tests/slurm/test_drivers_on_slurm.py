"""Drivers that are killed, interrupted, started twice, or get an edited config: one job, the undisturbed result."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from slurm_cluster import Slurm, until
from workplace import RUN, SUMMARY, Result, Workplace, before, program

from onestep.exits import Exit

pytestmark = pytest.mark.slurm

GROUP, USERS = "onestep_lab", ("onestep_ada", "onestep_bob")


def is_alive(process: int) -> bool:
    """Whether a process runs; one that has ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def detached(place: Workplace, **how) -> int:
    """Launch the run, leave its job alone, and return the job's id."""
    driver = place.launch(**how)
    driver.awaits("PENDING")
    driver.process.send_signal(signal.SIGTERM)
    driver.ends(Exit.DETACHED)
    return place.job


def check_jobs(place: Workplace, *expected: tuple[int, str]) -> None:
    """Check that accounting has exactly these jobs of the run, and the controller these states."""
    for job, state in expected:
        until(lambda: place.slurm.state(job) == state, seconds=30, what=f"job {job} is {state}")  # noqa: B023
    jobs = [job for job, _ in expected]
    until(lambda: [job.id for job in place.jobs] == jobs, seconds=30, what=f"accounting has {jobs} and no other")


def check_log(place: Workplace, *jobs: int) -> None:
    """Check that the rule's log has each line of rank 0 once, over all jobs and drivers."""
    for job in jobs:
        told, printed = place.told_of(job), place.printed_by(job)
        assert told == printed[: len(told)] and len(told) >= 2
    assert any(RUN in line and "960/960" in line for line in place.told_of(jobs[-1]))


def test_a_killed_snakemake_and_launcher_come_back_to_their_job(place, reference):
    driver = place.snakemake(profile="slurm")
    place.halts()
    for process in (driver.process.pid, place.launcher):
        os.kill(process, signal.SIGKILL)
    driver.code()
    job = place.job
    place.snakemake("--unlock", profile="slurm").ends(0)
    again = place.snakemake(profile="slurm")
    place.happens("attached")
    place.resume()
    again.ends(0)
    check_jobs(place, (job, "COMPLETED"))
    assert place.result == reference.result
    check_log(place, job)


def test_an_orphaned_launcher_leaves_and_publishes_nothing(place, reference):
    driver = place.snakemake()
    place.halts()
    launcher = place.launcher
    os.kill(driver.process.pid, signal.SIGKILL)
    until(lambda: not is_alive(launcher), seconds=15, what="the launcher has left")
    assert [event["because"] for event in place.events("detached")] == ["SIGHUP"]
    place.resume()
    until(lambda: place.journal.is_done, seconds=180, what="the job ends without a driver")
    assert not (place.folder / SUMMARY).exists() and not place.events("published")
    place.launch().ends(0)
    assert len(place.jobs) == 1
    assert place.result == reference.result


def submitted_and_not_recorded(place: Workplace, folder: Path) -> None:
    """Submit the run's job and kill the launcher before it records it."""
    real = shutil.which("sbatch", path=place.slurm.environment["PATH"])
    killing = program(folder, "sbatch", f'{real} "$@" || exit', "kill -9 $PPID")
    assert place.launch(environment=before(killing, place.slurm.environment)).code() == -signal.SIGKILL
    assert place.journal.is_submitting and place.journal.job is None


def test_a_job_whose_launcher_died_before_its_record_is_adopted(place, full, reference, tmp_path):
    submitted_and_not_recorded(place, tmp_path / "bin")
    again = place.launch()
    place.happens("adopted")
    assert not place.journal.is_submitting
    job = place.job
    assert (place.journal.folder / "submitit" / f"{job}_submitted.pkl").exists()
    place.slurm.command("scancel", str(full))
    again.ends(0)
    check_jobs(place, (job, "COMPLETED"))
    assert place.result == reference.result


def test_a_submission_that_outlives_its_launcher_is_waited_for(place, full, tmp_path):
    real = shutil.which("sbatch", path=place.slurm.environment["PATH"])
    slow = program(tmp_path / "bin", "sbatch", "kill -9 $PPID", "sleep 5", f'exec {real} "$@"')
    assert place.launch(environment=before(slow, place.slurm.environment)).code() == -signal.SIGKILL
    detached(place)
    assert len(place.events("adopted")) == 1 and not place.events("submitted")
    assert len(place.jobs) == 1


def test_signals_leave_the_job_alone_and_ctrl_c_cancels_it(place, full):
    seen = []
    for number, on_interrupt, code in (
        (signal.SIGTERM, "cancel", Exit.DETACHED),
        (signal.SIGHUP, "cancel", Exit.DETACHED),
        (signal.SIGINT, "detach", Exit.DETACHED),
        (signal.SIGINT, "cancel", Exit.CANCELLED),
    ):
        place.configure(launch={"on_interrupt": on_interrupt})
        driver = place.launch()
        driver.awaits("PENDING")
        driver.signal_group(number)
        output, job = driver.ends(code, seconds=30), place.job
        seen.append((job, place.slurm.state(job)))
        if code == Exit.DETACHED:
            assert f"job {job} " in output and place.events("detached")[-1]["job"] == str(job)
    job = seen[0][0]
    assert seen == [(job, "PENDING")] * 3 + [(job, "CANCELLED")]
    assert detached(place) != job
    assert len(place.jobs) == 2


def test_a_second_ctrl_c_leaves_at_once(place, full, tmp_path):
    slow = program(tmp_path / "bin", "scancel", f"touch {tmp_path}/asked", "sleep 20")
    driver = place.launch(environment=before(slow, place.slurm.environment))
    driver.awaits("PENDING")
    driver.signal_group(signal.SIGINT)
    until((tmp_path / "asked").exists, seconds=10, what="it cancels the job")
    driver.signal_group(signal.SIGINT)
    driver.ends(Exit.CANCELLED, seconds=5)
    assert detached(place) and len(place.jobs) == 1


def test_after_ctrl_c_the_run_resumes_from_its_last_state(place, reference):
    driver = place.snakemake()
    place.saves().halts()
    first = place.job
    driver.signal_group(signal.SIGINT)
    assert driver.code() != 0
    check_jobs(place, (first, "CANCELLED"))
    place.snakemake().ends(0)
    second = place.job
    check_jobs(place, (first, "CANCELLED"), (second, "COMPLETED"))
    assert place.summary["restarts"] == 1
    assert place.result == reference.result
    check_log(place, first, second)


def test_two_drivers_of_one_user_make_one_job(place, reference):
    first, second = place.launch(), place.launch()
    first.ends(0)
    second.ends(0)
    assert len(place.jobs) == len(place.events("published")) == 1
    assert place.result == reference.result


def test_a_config_edit_leaves_the_old_job_alone_or_cancels_it(place, full):
    first = detached(place)
    old = place.journal
    place.configure(seed=7)
    second = detached(place)
    (line,) = [line for line in place.driver.text.splitlines() if "launch.on_change" in line]
    assert f"job {first} " in line and str(old.folder.relative_to(place.folder)) in line
    edited = place.journals[-1]
    assert (edited.folder != old.folder, second != first) == (True, True)
    assert [place.slurm.state(job) for job in (first, second)] == ["PENDING", "PENDING"]
    place.configure(seed=8, launch={"on_change": "cancel"})
    third = place.launch()
    third.awaits("PENDING")
    third.signal_group(signal.SIGINT)
    third.ends(Exit.CANCELLED)
    assert [place.slurm.state(job) for job in (first, second)] == ["CANCELLED", "CANCELLED"]
    assert len({journal.folder for journal in place.journals}) == 3
    assert [len(place.jobs_of(journal)) for journal in place.journals] == [1, 1, 1]


def test_a_job_trains_what_it_was_submitted_for_after_a_config_edit(place, full, reference):
    job = detached(place)
    place.configure(seed=7)
    place.slurm.command("scancel", str(full))
    until(lambda: place.slurm.state(job) == "COMPLETED", seconds=180, what="the job ends")
    assert place.journal.is_done  # there is no folder but the old config's
    assert Result.of(place.journal.folder) == reference.result


def test_edits_of_launch_submit_nothing(place, full):
    job = detached(place)
    place.configure(launch={"partition": "high", "hours": 0.5, "state_seconds": 2.0, "requeues": 7})
    assert detached(place) == job
    assert [each.id for each in place.jobs] == [job]


def test_edits_of_launch_leave_a_finished_run_finished(reference, tmp_path):
    place = reference.copy(tmp_path / "work", whole=True)
    place.configure(launch={"partition": "high", "hours": 0.5})
    assert "Nothing to be done" in place.snakemake("--dry-run").ends(0)


def test_a_finished_run_is_published_without_slurm(slurm, reference, tmp_path):
    place = reference.copy(tmp_path / "work", whole=True)
    shutil.rmtree(place.folder / "results/runs" / RUN / "snapshots")
    (place.folder / SUMMARY).unlink()
    lacking = slurm.without("sbatch", "squeue", "sacct", "scontrol", "scancel", "srun", "sinfo")
    place.launch(environment=lacking).ends(0)
    assert place.result == reference.result


def test_status_shows_a_job_and_cancel_ends_it(place, full):
    job = detached(place)
    shown = place.onestep("status").ends(0)
    assert str(job) in shown and "PENDING" in shown
    assert f"{RUN}: job {job} cancelled" in place.onestep("cancel", RUN).ends(0)
    assert place.slurm.state(job) == "CANCELLED"
    assert place.onestep("cancel", RUN).ends(0).splitlines() == [f"{RUN}: no active job"]


def test_status_and_cancel_find_an_unrecorded_job(place, full, tmp_path):
    submitted_and_not_recorded(place, tmp_path / "bin")
    shown = place.onestep("status").ends(0)
    cancelled = place.onestep("cancel", RUN).ends(0)
    name = place.journal.jobs_name
    job = place.slurm.command("squeue", "--noheader", "--states", "all", "--name", name, "--format", "%A").strip()
    assert job in shown and "PENDING" in shown and f"{RUN}: job {job} cancelled" in cancelled
    assert place.slurm.state(int(job)) == "CANCELLED"
    assert place.onestep("cancel", RUN).ends(0).splitlines() == [f"{RUN}: no active job"]


@pytest.mark.parametrize(
    ("launch", "reason"),
    [({"partition": "nosuch"}, "Invalid partition name specified"), ({"gpu_type": "h100"}, "not available")],
)
def test_a_refusal_of_sbatch_is_one_line(place, launch, reason):
    place.configure(launch=launch)
    (line,) = place.launch().ends(Exit.FAILED).splitlines()
    assert line.startswith("onestep launch: ") and RUN in line and reason in line
    assert not place.journal.is_submitting and place.journal.job is None
    assert not place.slurm.command("squeue", "--noheader")


@contextmanager
def two_users(slurm: Slurm) -> Iterator[list[dict[str, Any]]]:
    """Make two users of one group who may start this Python; yield how to start a process as each."""
    with ExitStack() as undo:
        for folder in Path(sys.executable).resolve().parents:
            mode = folder.stat().st_mode & 0o7777
            if not mode & 0o001:
                folder.chmod(mode | 0o001)
                undo.callback(folder.chmod, mode)
        subprocess.run(["groupadd", GROUP], check=True)
        undo.callback(subprocess.run, ["groupdel", GROUP], check=True)
        for name in USERS:
            subprocess.run(["useradd", "--no-create-home", "--gid", GROUP, name], check=True)
            undo.callback(subprocess.run, ["userdel", "--force", name], check=True, capture_output=True)
            slurm.command("sacctmgr", "--immediate", "add", "user", name, "account=test")
        yield [{"user": name, "group": GROUP, "extra_groups": [], "umask": 0o002} for name in USERS]


@pytest.fixture
def shared(place: Workplace) -> Iterator[Workplace]:
    """A working directory that a group may write to, whose files stay the group's."""
    folder = Path(f"/var/tmp/onestep-shared-{os.getpid()}")
    shared = place.copy(folder)
    yield shared
    shared.clear_up()
    shared.slurm.cancel_all()
    shutil.rmtree(folder)


def test_drivers_of_two_users_make_one_job_and_replace_each_other(shared, full, reference):
    with two_users(shared.slurm) as users:
        for path in (shared.folder, *shared.folder.rglob("*")):
            shutil.chown(path, group=GROUP)
            path.chmod(0o2775 if path.is_dir() else 0o664)
        first, second = drivers = [shared.launch(**who) for who in users]
        until(lambda: any("PENDING" in each.text for each in drivers), seconds=180, what="one of them has a job")
        watches, waits = (first, second) if "PENDING" in first.text else (second, first)
        waits.awaits("watched by process")
        who = users[drivers.index(watches)]
        watches.process.send_signal(signal.SIGTERM)
        watches.ends(Exit.DETACHED)
        waits.awaits("PENDING")
        again = shared.launch(**who)
        shared.slurm.command("scancel", str(full))
        waits.ends(0)
        again.ends(0)
        owners = {path.owner() for path in shared.folder.rglob("*")}
        assert owners >= set(USERS)
    assert len(shared.jobs) == len(shared.events("published")) == 1
    assert shared.result == reference.result
