"""Submit, re-attach to, or publish a run's SLURM job, by its work folder and SLURM, not by this process's memory."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from onestep.exits import Exit
from onestep.launch.cluster import ACTIVE, Cluster, Sighting
from onestep.launch.job_policy import Decision, JobPolicy, Verdict
from onestep.launch.journal import Job, Journal, journals
from onestep.launch.submission import Refused, Request, adopt, job_name, keep_config, submit
from onestep.training.publication import begin, check_length, claim, is_published, publish, publish_snapshots, take_over

_REPORT_SECONDS = 300.0
# Time in which the sbatch of a killed launcher may still submit a job.
_IN_FLIGHT_SECONDS = 15.0


def launch(request: Request, *, journal: Journal, target: Path, log: Path | None = None) -> Exit:
    """Train a run to its end and publish it in `target`, continuing what an earlier launcher started.

    The caller copies this process's output to `log`; lines of earlier launchers are restored into it. Returns FINISHED,
    FAILED after reporting why, DETACHED if the job continues without this process, CANCELLED after Ctrl-C; ValueError
    if sbatch refuses the job.
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
                        journal.restore(log)
                    return _Launcher(request, journal, target=target, requests=requests).run_to_end()
            if not waited:
                report(f"{request.run}: watched by {journal.watcher}; waiting for it")
                waited = True
            time.sleep(1.0)
    # The job belongs to the other launcher.
    return requests.exit_code


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
        self._requests = requests
        self._run, self._site = request.run, request.site
        self._name = job_name(request.run, journal.folder)
        self._was_active = False
        self._last_state: tuple[str, str | None, int | None] | None = None
        self._state_at = 0.0

    @property
    def _cluster(self) -> Cluster:
        """SLURM of the run's job; before there is one, that of the config."""
        return Cluster(name=self._site.cluster) if self._journal.jobs_name is None else self._journal.cluster

    def run_to_end(self) -> Exit:
        folder, document = self._journal.folder, self._request.assignment.document()
        claim(folder, self._target, config=document)
        take_over(folder, self._target, images=document.get("images", 0))
        begin(folder, config=document)
        publish_snapshots(folder, self._target)
        if self._journal.is_done:
            check_length(folder, images=document.get("images", 0))
            return self._publish()
        self._handle_other_configs()
        job, active = self._find()
        if job is None:
            job, active = self._submit(attempt=0), True
        return self._requests.exit_code if job is None else self._watch(job, active=active)

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
            for job_id in other.cluster.active_jobs(name) or []:
                if self._site.on_change == "cancel" and other.cluster.cancel(job_id):
                    other.event("cancelled", job=job_id, because="the config changed")
                    self._report(f"cancelled job {job_id} of an earlier config (launch.on_change)")
                else:
                    fix = f"(launch.on_change); `scancel {job_id}` ends it"
                    self._report(f"job {job_id} of an earlier config continues in {other.folder} {fix}")

    def _find(self) -> tuple[Job | None, bool]:
        """Return the run's job, unless its end is recorded, and whether it is active for certain."""
        job, active = self._journal.job, self._active_jobs(in_flight_seconds=_IN_FLIGHT_SECONDS) or []
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
        age = timedelta(seconds=max(0, round(time.time() - job.submitted_at)))
        self._report(f"found job {job.job_id}, submitted {age} ago")
        self._journal.event("attached", job=job.job_id)
        if job.ended is not None:
            job = replace(job, ended=None)
            self._journal.record(job)
        return job, is_active

    def _active_jobs(self, *, in_flight_seconds: float = 0.0) -> list[str] | None:
        """Return the run's active jobs, oldest first; None if squeue does not answer.

        After a submission of unknown outcome, wait for squeue, and up to `in_flight_seconds` for a job to appear.
        """
        reported = False
        while True:
            active = self._cluster.active_jobs(self._name)
            unknown = active is None and self._journal.is_submitting
            in_flight = not active and self._journal.intended_seconds_ago < in_flight_seconds
            if not (unknown or in_flight) or self._requests.by is not None:
                return active and sorted(active, key=int)
            if unknown and not reported:
                self._report("squeue does not answer; waiting, since a job may have been submitted")
                reported = True
            time.sleep(1.0)

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
        """Watch jobs to the run's end; one that had failed before it was found (not `active`) gets a successor."""
        while True:
            decision = self._await_decision(job)
            if decision is None:
                return self._leave(job)
            if decision.verdict is Verdict.FINISHED:
                return self._publish()
            if decision.verdict is Verdict.UNREACHABLE:
                self._report(f"{decision.because}; job {job.job_id} may continue. Fix: run the same command again")
                return Exit.DETACHED
            self._journal.record(replace(job, ended=decision.because))
            # Jobs count since the run last made progress.
            attempt = 1 if self._journal.images_seen > job.images_seen else job.attempt + 1
            requeues, _ = self._journal.ending_of(job.job_id)
            spent = attempt > self._site.resubmissions or (requeues is not None and requeues >= self._site.requeues > 0)
            must_end = (active or self._was_active) and (spent or decision.verdict is not Verdict.LOST)
            # Only a job that SLURM certainly does not requeue may have a successor.
            if must_end or not self._cluster.cancel(job.job_id):
                return self._fail(job, decision.because)
            self._report(f"job {job.job_id}: {decision.because}; submitting another job")
            successor = self._submit(attempt=attempt)
            if successor is None:
                return self._requests.exit_code
            job, active = successor, True

    def _await_decision(self, job: Job) -> Decision | None:
        """Return the first decision other than WAIT; None if this process is to leave first."""
        tail = self._journal.tail(job.job_id)
        policy, query_at = JobPolicy(grace_seconds=self._site.grace_seconds), 0.0
        decision: Decision | None = None
        keep_config(self._request, folder=self._journal.folder)
        while self._requests.by is None:
            # done.json needs no SLURM.
            if self._journal.is_done or time.monotonic() >= query_at:
                query_at = time.monotonic() + self._site.poll_seconds * random.uniform(0.8, 1.2)
                sighting, (_, exit_code) = self._cluster.look(job.job_id), self._journal.ending_of(job.job_id)
                self._was_active = self._was_active or sighting.state in ACTIVE
                done, stopped, now = self._journal.is_done, self._journal.stopped(job.job_id), time.monotonic()
                decision = policy.decide(sighting, now=now, done=done, exit_code=exit_code, stopped=stopped)
                if decision.verdict is Verdict.FAILED and exit_code == 0 and self._journal.is_shorter:
                    # Its images were raised while it ran; another job continues it.
                    decision = Decision(Verdict.LOST, "the run is finished at fewer images than config.yaml has now")
                self._report_state(job, sighting, because=decision.because)
            for line in next(tail):
                report(f"[{job.job_id}] {line}")
            if decision is not None and decision.verdict is not Verdict.WAIT:
                return decision
            time.sleep(min(1.0, self._site.poll_seconds))
        return None

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
                self._journal.record(replace(job, ended="cancelled by Ctrl-C"))
            self._journal.event("cancelled", job=job.job_id, because=by.name)
            result = "cancelled" if gone else f"still active after scancel; `scancel {job.job_id}` retries"
            self._report(f"job {job.job_id} {result}; the same command resumes from its last state")
            return Exit.CANCELLED
        self._journal.event("detached", job=job.job_id, because=by and by.name)
        commands = f"the same command attaches to it, `onestep status` shows it, `onestep cancel {self._run}` ends it"
        self._report(f"job {job.job_id} continues in SLURM; {commands}")
        return Exit.DETACHED

    def _fail(self, job: Job, because: str) -> Exit:
        self._journal.event("failed", job=job.job_id, because=because)
        lines, error = self._journal.failure(job.job_id)
        for line in lines:
            report(line)
        because = because if error is None else f"{because}: {error}"
        resumes = f"the same command resumes from the last state; logs: {self._journal.logs}"
        self._report(f"job {job.job_id}: {because}; {resumes}")
        return Exit.FAILED


def _fields(process: int) -> list[str] | None:
    """Return the fields of /proc/N/stat after the program name: state, parent, ..., start; None if it has ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return None


def _snakemake_above() -> tuple[int, str] | None:
    """Return id and start of the nearest ancestor that runs `snakemake`, `python -m snakemake` or such a script."""
    fields = _fields(os.getpid())
    while fields is not None and (parent := int(fields[1])) > 1:
        fields = _fields(parent)
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{parent}/cmdline").read_bytes().split(b"\0")
            if fields is not None and any(Path(os.fsdecode(word)).name == "snakemake" for word in words[:3]):
                return parent, fields[19]  # in clock ticks since boot; a later process of this id has another
    return None


class LeaveRequests:
    """Context that records SIGINT, SIGTERM and SIGHUP; a second SIGINT exits at once with `Exit.CANCELLED`.

    The end of the Snakemake that started this process counts as SIGHUP.
    """

    def __init__(self) -> None:
        self._snakemake = _snakemake_above()
        self._signal: signal.Signals | None = None
        self._previous: dict[int, Any] = {}

    @property
    def by(self) -> signal.Signals | None:
        """First signal received, or None."""
        if self._signal is None and self._snakemake is not None:
            number, start = self._snakemake
            fields = _fields(number)
            if fields is None or fields[19] != start or fields[0] == "Z":
                self._signal = signal.SIGHUP
        return self._signal

    @property
    def exit_code(self) -> Exit:
        """Exit code of a launcher that leaves without a job."""
        return Exit.CANCELLED if self.by == signal.SIGINT else Exit.DETACHED

    def __enter__(self) -> LeaveRequests:
        # SIGHUP stays ignored under nohup.
        hangup = [] if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else [signal.SIGHUP]
        handled = (signal.SIGINT, signal.SIGTERM, *hangup)
        self._previous = {number: signal.signal(number, self._record) for number in handled}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _record(self, number: int, _: object) -> None:
        if number == signal.SIGINT and self._signal == signal.SIGINT:
            os._exit(Exit.CANCELLED)
        if self._signal is None:
            self._signal = signal.Signals(number)
