"""Idempotently submit, re-attach to, or publish a SLURM training job.

All decisions follow from the run's work folder and SLURM, not from this process's memory.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

from onestep.exits import Exit
from onestep.launch.cluster import ACTIVE, Cluster, Sighting
from onestep.launch.job_policy import Decision, JobPolicy, Verdict
from onestep.launch.journal import Job, Journal, journals
from onestep.launch.log_tail import LogTail, last_lines, restore, user_error
from onestep.launch.parent_process import LeaveRequests
from onestep.launch.submission import Refused, Request, adopt, job_name, submit
from onestep.training.assignment import is_published, publish

# Limits of `JobPolicy` that are not options of `launch`.
_VANISHED_SECONDS = 120.0
_PATIENCE_SECONDS = 6 * 3600.0
_REPORT_SECONDS = 300.0
# Time in which the sbatch of a killed launcher may still submit a job.
_IN_FLIGHT_SECONDS = 15.0


def launch(request: Request, *, journal: Journal, target: Path, log: Path | None = None) -> Exit:
    """Train a run to its end and publish it, continuing what an earlier launcher started.

    This process's output is copied to `log` by its caller; lines printed by earlier launchers are restored into it.

    Returns:
        FINISHED after publication in `target`; FAILED after reporting why; DETACHED if the job continues without this
        process; CANCELLED after Ctrl-C.

    Raises:
        ValueError: sbatch refused the job.
    """
    waited = False
    with LeaveRequests() as requests:
        while requests.by is None:
            with journal.watching() as is_watcher:
                if is_watcher:
                    if waited and journal.is_done and is_published(journal.folder, target):
                        report(f"{request.run}: finished, and published by its launcher")
                        return Exit.FINISHED
                    if log is not None:
                        restore(journal.logs, place=journal.streamed, log=log)
                    return _Launcher(request, journal, target=target, requests=requests).run_to_end()
            if not waited:
                report(f"{request.run}: watched by {journal.watcher}; waiting for it")
                waited = True
            time.sleep(1.0)
    # The job belongs to the other launcher.
    return _left(requests)


def _left(requests: LeaveRequests) -> Exit:
    """Return the exit code of a launcher that leaves without a job."""
    return Exit.CANCELLED if requests.by == signal.SIGINT else Exit.DETACHED


def report(line: str) -> None:
    """Print a line; ignore a closed output."""
    try:
        print(line, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Launcher:
    """The only launcher of a run, while it holds the run's lock."""

    def __init__(self, request: Request, journal: Journal, *, target: Path, requests: LeaveRequests):
        self._request, self._journal, self._target = request, journal, target
        self._cluster, self._requests = Cluster(), requests
        self._run, self._site = request.run, request.site
        self._name = job_name(request.run, journal.folder)
        self._was_active = False
        self._last_state: tuple[str, str | None, int | None] | None = None
        self._state_at = 0.0

    def run_to_end(self) -> Exit:
        if self._journal.is_done:
            return self._publish()
        self._handle_other_configs()
        job, active = self._find()
        if job is None:
            job, active = self._submit(attempt=0), True
        return _left(self._requests) if job is None else self._watch(job, active=active)

    def _publish(self) -> Exit:
        publish(self._journal.folder, self._target)
        self._journal.event("published")
        self._report(f"finished, published in {self._target}")
        return Exit.FINISHED

    def _report(self, line: str) -> None:
        report(f"{self._run}: {line}")

    def _handle_other_configs(self) -> None:
        """Report or cancel active jobs of earlier configs of this run (launch.on_change)."""
        for other in journals(self._journal.folder.parent.parent, self._run):
            name = other.jobs_name
            if other.folder.resolve() == self._journal.folder.resolve() or other.is_done or name is None:
                continue
            for job_id in self._cluster.active_jobs(name) or []:
                if self._site.on_change == "cancel" and self._cluster.cancel(job_id):
                    other.event("cancelled", job=job_id, because="the config changed")
                    self._report(f"cancelled job {job_id} of an earlier config (launch.on_change)")
                else:
                    self._report(
                        f"job {job_id} of an earlier config continues in {other.folder} (launch.on_change); "
                        f"`scancel {job_id}` ends it"
                    )

    def _find(self) -> tuple[Job | None, bool]:
        """Return the run's job, unless its end is recorded, and whether it is active for certain."""
        job, active = self._journal.job, self._settled_jobs() or []
        is_active = job is not None and job.job_id in active
        if job is not None and job.ended is not None and is_active:
            # A job of recorded end completes, or a user requeued it.
            is_active = self._cluster.look(job.job_id).state != "COMPLETING"
        others = [job_id for job_id in active if job is None or job_id != job.job_id]
        if others and not is_active:
            self._report(f"found job {others[0]} of name {self._name}")
            return adopt(others[0], self._request, journal=self._journal), True
        if job is None or (job.ended is not None and not is_active):
            return None, False
        self._report(f"found job {job.job_id}, submitted {_ago(job.submitted_at)} ago")
        self._journal.event("attached", job=job.job_id)
        if job.ended is not None:
            job = replace(job, ended=None)
            self._journal.record(job)
        return job, is_active

    def _settled_jobs(self) -> list[str] | None:
        """Return the run's active jobs, after the time in which a killed launcher's sbatch may still submit."""
        active = self._active_jobs()
        while not active and self._journal.intended_seconds_ago < _IN_FLIGHT_SECONDS and self._requests.by is None:
            time.sleep(1.0)
            active = self._active_jobs()
        return active

    def _active_jobs(self) -> list[str] | None:
        """Return the run's active jobs, oldest first; after a submission of unknown outcome, wait for squeue."""
        active = self._cluster.active_jobs(self._name)
        if active is None and self._journal.is_submitting:
            self._report("squeue does not answer; waiting, since a job may have been submitted")
        while active is None and self._journal.is_submitting and self._requests.by is None:
            time.sleep(1.0)
            active = self._cluster.active_jobs(self._name)
        return None if active is None else sorted(active, key=int)

    def _submit(self, *, attempt: int) -> Job | None:
        """Submit a job once SLURM answers; None if a signal came first."""
        job = None
        while job is None:
            if self._requests.by is not None:
                return None
            try:
                job = submit(self._request, journal=self._journal, attempt=attempt)
            except Refused as refusal:
                job = self._unconfirmed_job(refusal)
        self._report(f"submitted job {job.job_id}; log of rank 0: {self._journal.log_of(job.job_id)}")
        return job

    def _unconfirmed_job(self, refusal: Refused) -> Job | None:
        """Return the job that sbatch submitted without confirming it, None to retry; raise Refused if there is none."""
        answered = self._cluster.active_jobs(self._name) is not None
        active = self._active_jobs()
        if active:
            return adopt(active[0], self._request, journal=self._journal)
        if active is not None:
            self._journal.give_up_intention()
        if answered:
            raise refusal
        self._report(f"{refusal}; retrying, since SLURM did not answer")
        return None

    def _watch(self, job: Job, *, active: bool) -> Exit:
        """Watch jobs until the run ends or this process is to leave.

        A job that had failed before it was found (`active` is false) is resubmitted, not reported as a failure.
        """
        while True:
            decision = self._await_decision(job)
            if decision is None:
                return self._leave(job)
            if decision.verdict is Verdict.FINISHED:
                return self._publish()
            if decision.verdict is Verdict.UNREACHABLE:
                self._report(f"{decision.because}; job {job.job_id} may continue. Fix: run the same command again")
                return Exit.DETACHED
            self._journal.close(job, because=decision.because)
            must_end = (active or self._was_active) and not self._may_resubmit(job, decision)
            # Only a job that SLURM certainly does not requeue may have a successor.
            if must_end or not self._cluster.cancel(job.job_id):
                return self._fail(job, decision.because)
            self._report(f"job {job.job_id}: {decision.because}; submitting another job")
            successor = self._submit(attempt=self._attempt_after(job))
            if successor is None:
                return _left(self._requests)
            job, active = successor, True

    def _await_decision(self, job: Job) -> Decision | None:
        """Return the first decision other than WAIT; None if this process is to leave first."""
        tail = LogTail(self._journal.log_of(job.job_id), place=self._journal.streamed)
        policy = JobPolicy(
            grace_seconds=self._site.grace_seconds,
            vanished_seconds=_VANISHED_SECONDS,
            patience_seconds=_PATIENCE_SECONDS,
        )
        query_at = 0.0
        while self._requests.by is None:
            self._print_log(tail, job)
            # done.json needs no SLURM.
            if self._journal.is_done or time.monotonic() >= query_at:
                query_at = time.monotonic() + self._site.poll_seconds * random.uniform(0.8, 1.2)
                sighting, (_, exit_code) = self._cluster.look(job.job_id), self._journal.ending_of(job.job_id)
                self._was_active = self._was_active or sighting.state in ACTIVE
                decision = policy.decide(
                    sighting,
                    now=time.monotonic(),
                    done=self._journal.is_done,
                    exit_code=exit_code,
                    stopped=self._journal.stopped(job.job_id),
                )
                self._report_state(job, sighting, because=decision.because)
                if decision.verdict is not Verdict.WAIT:
                    self._print_log(tail, job)
                    return decision
            time.sleep(min(1.0, self._site.poll_seconds))
        return None

    def _print_log(self, tail: LogTail, job: Job) -> None:
        for line in tail.lines():
            report(f"[{job.job_id}] {line}")

    def _report_state(self, job: Job, sighting: Sighting, *, because: str) -> None:
        """Print a line if the state changed, or did not for `_REPORT_SECONDS` in any state but RUNNING."""
        now, state = time.monotonic(), (job.job_id, sighting.state, sighting.restarts)
        if state == self._last_state and (sighting.state == "RUNNING" or now - self._state_at < _REPORT_SECONDS):
            return
        if state != self._last_state:
            facts = {"state": sighting.state, "restarts": sighting.restarts, "nodes": sighting.nodes}
            self._journal.event("state", job=job.job_id, **facts)
        self._last_state, self._state_at = state, now
        restarts = f", restart {sighting.restarts}" if sighting.restarts else ""
        self._report(f"job {job.job_id} {because}{restarts}")

    def _leave(self, job: Job) -> Exit:
        """Cancel the job after Ctrl-C (launch.on_interrupt), else leave it running."""
        by = self._requests.by
        if by == signal.SIGINT and self._site.on_interrupt == "cancel":
            gone = self._cluster.cancel(job.job_id)
            if gone:
                self._journal.close(job, because="cancelled by Ctrl-C")
            self._journal.event("cancelled", job=job.job_id, because=by.name)
            result = "cancelled" if gone else f"still active after scancel; `scancel {job.job_id}` retries"
            self._report(f"job {job.job_id} {result}; the same command resumes from its last state")
            return Exit.CANCELLED
        self._journal.event("detached", job=job.job_id, because=None if by is None else by.name)
        self._report(
            f"job {job.job_id} continues in SLURM; the same command attaches to it, `onestep status` shows it, "
            f"`onestep cancel {self._run}` ends it"
        )
        return Exit.DETACHED

    def _may_resubmit(self, job: Job, decision: Decision) -> bool:
        restarts, _ = self._journal.ending_of(job.job_id)
        spent = restarts is not None and restarts >= self._site.requeues > 0
        return decision.verdict is Verdict.LOST and not spent and self._attempt_after(job) <= self._site.resubmissions

    def _attempt_after(self, job: Job) -> int:
        """Return the number of the next job, counted since the run last made progress."""
        return 1 if self._journal.images_seen > job.images_seen else job.attempt + 1

    def _fail(self, job: Job, because: str) -> Exit:
        self._journal.event("failed", job=job.job_id, because=because)
        logs = self._journal.logs
        for line in last_lines(logs, job.job_id):
            report(line)
        error = user_error(logs, job.job_id)
        because = because if error is None else f"{because}: {error}"
        self._report(f"job {job.job_id}: {because}; the same command resumes from the last state; logs: {logs}")
        return Exit.FAILED


def _ago(at: float) -> str:
    minutes, seconds = divmod(max(0, round(time.time() - at)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
