"""A training as a job of SLURM, however often this is called: found finished, found running, or submitted; once.

What decides is on disk, in the run's work folder, and in SLURM; nothing that is lost with this process.
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
from onestep.launch.cluster import ALIVE, Cluster, Sighting
from onestep.launch.journal import Job, Journal, journals
from onestep.launch.judgement import Judge, Judgement, Verdict
from onestep.launch.signals import Asked
from onestep.launch.stream import LogStream, complaint, endings, retell
from onestep.launch.submission import Refused, Request, adopt, job_name, log_of, logs_of, submit
from onestep.training.publication import is_published, publish

# What is not said of SLURM's own: how long a job may be unknown to all, or SLURM silent, before we leave.
_VANISHED_SECONDS = 120.0
_PATIENCE_SECONDS = 6 * 3600.0
_SAY_EVERY_SECONDS = 300.0
# How long after its launcher was killed a call of sbatch may still submit a job.
_IN_FLIGHT_SECONDS = 15.0


def launch(
    request: Request, *, journal: Journal, target: Path, log: Path | None = None, cluster: Cluster | None = None
) -> Exit:
    """See a run to its end and publish it; take up what another launcher began.

    Args:
        request: The run, what its processes call, and what its site wants to be told.
        journal: Of the run's work folder.
        target: Receives the published run.
        log: Where what this prints goes as well; receives what earlier launchers passed on, if it is not there.
        cluster: SLURM.

    Returns:
        FINISHED with the run published; FAILED after saying why; DETACHED where the job goes on without this process;
        CANCELLED after Ctrl-C.

    Raises:
        ValueError: sbatch refused the job.
    """
    said = False
    with Asked() as asked:
        while asked.by is None:
            with journal.watching() as mine:
                if mine and said and journal.is_done and is_published(journal.folder, target):
                    say(f"{request.run}: finished, and published by who watched it")
                    return Exit.FINISHED
                if mine and log is not None:
                    retell(logs_of(journal), place=journal.streamed, log=log)
                if mine:
                    return _Launcher(request, journal, target, cluster or Cluster(), asked).carry_out()
            if not said:
                say(f"{request.run}: {journal.watcher} watches this run; waiting for it")
                said = True
            time.sleep(1.0)
    # The job is the other launcher's.
    return _left(asked)


def _left(asked: Asked) -> Exit:
    """Return how a launcher ends that was asked to leave and has no job."""
    return Exit.CANCELLED if asked.by == signal.SIGINT else Exit.DETACHED


def say(line: str) -> None:
    """Print a line; what it went to may have died before us."""
    try:
        print(line, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Launcher:
    """The one launcher of a run, for as long as it holds the run's lock."""

    def __init__(self, request: Request, journal: Journal, target: Path, cluster: Cluster, asked: Asked) -> None:
        self._request, self._journal, self._target = request, journal, target
        self._cluster, self._asked = cluster, asked
        self._run, self._site = request.run, request.site
        self._lived = False

    def carry_out(self) -> Exit:
        """Publish the run if it is done; else find or submit its job, and watch it."""
        if self._journal.is_done:
            return self._publish()
        self._settle_others()
        job, lives = self._found()
        if job is None:
            job, lives = self._submit(attempt=0), True
        return _left(self._asked) if job is None else self._watch(job, lives=lives)

    def _publish(self) -> Exit:
        publish(self._journal.folder, self._target)
        self._journal.event("published")
        say(f"{self._run}: finished, published in {self._target}")
        return Exit.FINISHED

    def _settle_others(self) -> None:
        """Say, or end, what still trains this run under an earlier config."""
        for other in journals(self._journal.folder.parent.parent, self._run):
            name = other.jobs_name
            if other.folder.resolve() == self._journal.folder.resolve() or other.is_done or name is None:
                continue
            for job_id in self._cluster.active_jobs(name) or []:
                if self._site.on_change == "cancel" and self._cluster.cancel(job_id):
                    other.event("cancelled", job=job_id, because="the config changed")
                    say(f"{self._run}: job {job_id} trained it under an earlier config; cancelled (launch.on_change)")
                else:
                    say(
                        f"{self._run}: job {job_id} trains it under an earlier config, in {other.folder}; left alone "
                        f"(launch.on_change), `scancel {job_id}` ends it"
                    )

    def _found(self) -> tuple[Job | None, bool]:
        """Return the run's job, unless its end is known, and whether it is known to live."""
        job, name = self._journal.job, job_name(self._run, self._journal.folder)
        active = self._settled(name) or []
        lives = job is not None and job.job_id in active and not self._is_leaving(job)
        others = [job_id for job_id in active if job is None or job_id != job.job_id]
        if others and not lives:
            say(f"{self._run}: found job {others[0]} under the name {name}")
            return adopt(others[0], self._request, journal=self._journal), True
        if job is None or (job.ended is not None and not lives):
            return None, False
        say(f"{self._run}: found job {job.job_id}, submitted {_ago(job.submitted_at)} ago")
        self._journal.event("attached", job=job.job_id)
        if job.ended is not None:
            job = replace(job, ended=None)
            self._journal.record(job)
        return job, lives

    def _is_leaving(self, job: Job) -> bool:
        """Whether a job whose end is known is on its way out; else somebody has put it back into the queue."""
        return job.ended is not None and self._cluster.look(job.job_id).state == "COMPLETING"

    def _settled(self, name: str) -> list[str] | None:
        """Return the ids of living jobs under a name, once what a killed launcher may have begun has ended."""
        active = self._active(name)
        while not active and self._journal.intended_seconds_ago < _IN_FLIGHT_SECONDS and self._asked.by is None:
            time.sleep(1.0)
            active = self._active(name)
        return active

    def _active(self, name: str) -> list[str] | None:
        """Return the ids of living jobs under a name, oldest first; after a submission of unknown end, wait for it."""
        active = self._cluster.active_jobs(name)
        if active is None and self._journal.is_submitting:
            say(f"{self._run}: a job may have been submitted and squeue does not answer; waiting for it")
        while active is None and self._journal.is_submitting and self._asked.by is None:
            time.sleep(1.0)
            active = self._cluster.active_jobs(name)
        return None if active is None else sorted(active, key=int)

    def _submit(self, *, attempt: int) -> Job | None:
        """Submit a job, as soon as SLURM answers; None where a signal came first."""
        job = None
        while job is None:
            if self._asked.by is not None:
                return None
            try:
                job = submit(self._request, journal=self._journal, attempt=attempt)
            except Refused as refusal:
                job = self._taken_after_all(refusal)
        say(f"{self._run}: submitted job {job.job_id}; rank 0 prints to {log_of(job.job_id, journal=self._journal)}")
        return job

    def _taken_after_all(self, refusal: Refused) -> Job | None:
        """Return the job that sbatch took without saying so; None where SLURM was away, or is still.

        Raises:
            Refused: SLURM is there and has not taken the job.
        """
        name = job_name(self._run, self._journal.folder)
        was_away = self._cluster.active_jobs(name) is None
        active = self._active(name)
        if active:
            return adopt(active[0], self._request, journal=self._journal)
        if active is not None:
            self._journal.give_up_intention()
        if not was_away:
            raise refusal
        say(f"{self._run}: {refusal}; trying again, because SLURM did not answer")
        return None

    def _watch(self, job: Job, *, lives: bool) -> Exit:
        """Watch jobs until the run has ended, or until this process is asked to leave.

        A job that had failed before it was found (`lives` is false) is no reason to fail now: it is submitted anew.
        """
        while True:
            judgement = self._judged(job)
            if judgement is None:
                return self._leave(job)
            if judgement.verdict is Verdict.FINISHED:
                return self._publish()
            if judgement.verdict is Verdict.UNREACHABLE:
                say(f"{self._run}: {judgement.because}; job {job.job_id} may go on, the same command comes back to it")
                return Exit.DETACHED
            self._journal.close(job, because=judgement.because)
            if (lives or self._lived) and not self._may_follow(job, judgement):
                return self._fail(job, judgement)
            # Only what SLURM is certain not to put back now may have a successor.
            if not self._cluster.cancel(job.job_id):
                return self._fail(job, judgement)
            say(f"{self._run}: job {job.job_id}: {judgement.because}; submitting it anew")
            successor = self._submit(attempt=self._attempt_after(job))
            if successor is None:
                return _left(self._asked)
            job, lives = successor, True

    def _judged(self, job: Job) -> Judgement | None:
        """Return the first judgement that is not to wait; None when asked to leave before that."""
        stream = LogStream(log_of(job.job_id, journal=self._journal), place=self._journal.streamed)
        judge = Judge(
            grace_seconds=self._site.grace_seconds,
            vanished_seconds=_VANISHED_SECONDS,
            patience_seconds=_PATIENCE_SECONDS,
        )
        news, look_at = _News(self._run, job.job_id, self._journal), 0.0
        while self._asked.by is None:
            _tell(stream, job)
            # The run's own mark needs no SLURM.
            if self._journal.is_done or time.monotonic() >= look_at:
                look_at = time.monotonic() + self._site.poll_seconds * random.uniform(0.8, 1.2)
                judgement = self._look(job, judge, news)
                if judgement.verdict is not Verdict.WAIT:
                    _tell(stream, job)
                    return judgement
            time.sleep(min(1.0, self._site.poll_seconds))
        return None

    def _look(self, job: Job, judge: Judge, news: _News) -> Judgement:
        sighting, ending = self._cluster.look(job.job_id), self._journal.ending_of(job.job_id)
        self._lived = self._lived or sighting.state in ALIVE
        judgement = judge.judge(
            sighting,
            now=time.monotonic(),
            done=self._journal.is_done,
            exit_code=None if ending is None else ending.code,
            stopped=self._journal.stopped(job.job_id),
        )
        news.tell(sighting, because=judgement.because)
        return judgement

    def _leave(self, job: Job) -> Exit:
        """Do with the job what the signal, or the config, says."""
        by = self._asked.by
        if by == signal.SIGINT and self._site.on_interrupt == "cancel":
            gone = self._cluster.cancel(job.job_id)
            if gone:
                self._journal.close(job, because="cancelled by Ctrl-C")
            self._journal.event("cancelled", job=job.job_id, because=by.name)
            said = "cancelled" if gone else f"asked to end, but still there; `scancel {job.job_id}` asks again"
            say(f"{self._run}: job {job.job_id} {said}; the same command goes on from its last state")
            return Exit.CANCELLED
        self._journal.event("detached", job=job.job_id, because=None if by is None else by.name)
        say(
            f"{self._run}: job {job.job_id} goes on without us; the same command comes back to it, `onestep status` "
            f"shows it, `onestep cancel {self._run}` ends it"
        )
        return Exit.DETACHED

    def _may_follow(self, job: Job, judgement: Judgement) -> bool:
        """Whether another job takes the place of one that SLURM lost."""
        ending = self._journal.ending_of(job.job_id)
        spent = ending is not None and ending.restarts >= self._site.requeues > 0
        return judgement.verdict is Verdict.LOST and not spent and self._attempt_after(job) <= self._site.resubmissions

    def _attempt_after(self, job: Job) -> int:
        """Return the number of the job that would follow: those count between which the run did not get on."""
        return 1 if self._journal.images_seen > job.images_seen else job.attempt + 1

    def _fail(self, job: Job, judgement: Judgement) -> Exit:
        self._journal.event("failed", job=job.job_id, because=judgement.because)
        logs = logs_of(self._journal)
        for line in endings(logs, job.job_id):
            say(line)
        said = complaint(logs, job.job_id)
        because = judgement.because if said is None else f"{judgement.because}: {said}"
        say(f"{self._run}: job {job.job_id}: {because}; the same command goes on from the last state; logs: {logs}")
        return Exit.FAILED


def _tell(stream: LogStream, job: Job) -> None:
    for line in stream.lines():
        say(f"[{job.job_id}] {line}")


class _News:
    """Says what has changed about a job, and from time to time that nothing has."""

    def __init__(self, run: str, job_id: str, journal: Journal) -> None:
        self._run, self._job_id, self._journal = run, job_id, journal
        self._told: tuple[str | None, int | None] | None = None
        self._said_at = time.monotonic()

    def tell(self, sighting: Sighting, *, because: str) -> None:
        """Print a line if it is worth one."""
        now, state = time.monotonic(), (sighting.state, sighting.restarts)
        if state == self._told and (sighting.state == "RUNNING" or now - self._said_at < _SAY_EVERY_SECONDS):
            return
        if state != self._told:
            self._told = state
            facts = {"state": sighting.state, "restarts": sighting.restarts, "nodes": sighting.nodes}
            self._journal.event("state", job=self._job_id, **facts)
        self._said_at = now
        life = f", life {sighting.restarts + 1}" if sighting.restarts else ""
        say(f"{self._run}: job {self._job_id} {because}{life}")


def _ago(at: float) -> str:
    minutes, seconds = divmod(max(0, round(time.time() - at)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
