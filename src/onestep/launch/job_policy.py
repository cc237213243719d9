"""Decide from a job's observed states whether to wait, publish, fail or resubmit. Pure: no queries, no sleep."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import NamedTuple

from onestep.exits import Exit
from onestep.launch.cluster import ACTIVE, Sighting

# Terminal states that are not retried.
_FINAL = frozenset({"FAILED", "OUT_OF_MEMORY", "CANCELLED", "DEADLINE"})
# Terminal states caused by the cluster; SLURM may still requeue the job for a while.
_NO_FAULT = frozenset({"NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "TIMEOUT", "REVOKED", "RECONFIG_FAIL"})
_HELD = frozenset({"REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"})
# A job in the middle of a requeue can show its terminal state once.
_CONFIRMATION_SECONDS = 5.0


class Verdict(enum.Enum):
    """Next action of a launcher."""

    WAIT = "wait"  # query again later
    FINISHED = "finished"  # publish
    FAILED = "failed"  # report and give up
    LOST = "lost"  # ended through no fault of the run: submit another job
    UNREACHABLE = "unreachable"  # SLURM does not answer: stop watching, the job may continue


class Decision(NamedTuple):
    """A verdict and its reason in one line; the line is constant while the job's state is."""

    verdict: Verdict
    because: str


@dataclass(kw_only=True)
class JobPolicy:
    """Policy for one job, with the time since when its state has been constant; seconds of one monotonic clock."""

    grace_seconds: float  # that SLURM may take to requeue a job after a node failure, preemption or time limit
    vanished_seconds: float = 120.0  # that the files of an ended job may take to appear on this machine
    patience_seconds: float = 6 * 3600.0  # that SLURM may leave queries unanswered
    _last: Sighting | None = field(default=None, init=False)
    _since: float = field(default=0.0, init=False)
    _heard: float | None = field(default=None, init=False)

    def decide(self, sighting: Sighting, *, now: float, done: bool, exit_code: int | None, stopped: bool) -> Decision:
        """Return what follows from SLURM's answer at the time `now` (seconds) and from the files of the newest start.

        `done`: done.json exists. `exit_code`: of the batch script, None if not (yet) written. `stopped`: the training
        saved its state after a signal.
        """
        if done:
            return Decision(Verdict.FINISHED, "the run is finished")
        # Accounting lags: without a record, its answer alone does not count.
        informative = sighting.state is not None or bool(sighting.answered & {"squeue", "scontrol"})
        if self._heard is None or informative:
            self._heard = now
        if not informative:
            if now - self._heard < self.patience_seconds:
                return Decision(Verdict.WAIT, "SLURM does not answer")
            because = f"no answer from SLURM for {self.patience_seconds:g} s; the job may still run"
            return Decision(Verdict.UNREACHABLE, because)
        seen = self._update(sighting, now=now)
        if seen.state in ACTIVE:
            held = seen.state in _HELD or "held" in seen.reason.lower()
            return Decision(Verdict.WAIT, f"{_described(seen)}{'; held until `scontrol release`' if held else ''}")
        if seen.state is not None and seen.state not in _FINAL | _NO_FAULT | {"COMPLETED"}:
            verdict = Verdict.UNREACHABLE if now - self._since >= self.patience_seconds else Verdict.WAIT
            return Decision(verdict, f"unknown SLURM state: {_described(seen)}")
        delay = self._delay(seen, exit_code=exit_code)
        if now - self._since < delay:
            return Decision(Verdict.WAIT, f"{_described(seen)}; confirming for up to {delay:g} s")
        return _ended(seen, exit_code=exit_code, stopped=stopped)

    def _update(self, sighting: Sighting, *, now: float) -> Sighting:
        """Record a sighting and return the one that counts."""
        last = self._last
        if sighting.state is None and last is not None and last.state is not None and last.state not in ACTIVE:
            # SLURM forgets a job minutes after its end; its terminal state still counts.
            return last
        # An unknown number of restarts is that of the last sighting.
        restarts = {last.restarts if last else None, sighting.restarts} - {None}
        if last is None or last.state != sighting.state or len(restarts) == 2:
            self._since = now
        self._last = sighting
        return sighting

    def _delay(self, seen: Sighting, *, exit_code: int | None) -> float:
        """Return how long a terminal state must persist before it counts, in seconds."""
        if seen.state in _NO_FAULT:
            return self.grace_seconds
        # A failed training has an exit code, which shows whether it was stopped. A job with an exit code that SLURM has
        # forgotten is not requeued, and its done.json would be visible by now.
        settled = seen.state in _FINAL and (seen.state != "FAILED" or exit_code is not None)
        if settled or (seen.state is None and exit_code):
            return min(_CONFIRMATION_SECONDS, self.vanished_seconds)
        return self.vanished_seconds


def _ended(seen: Sighting, *, exit_code: int | None, stopped: bool) -> Decision:
    """Return the decision on a job that ended for good without finishing its run."""
    verdict = Verdict.FAILED
    if seen.state == "CANCELLED":
        # Never resubmit a cancelled job, even if the training saved its state.
        because = "the job was cancelled"
    elif stopped or exit_code == Exit.STOPPED:
        verdict, because = Verdict.LOST, "the training saved its state and stopped, and was not requeued"
    elif seen.state in _NO_FAULT:
        verdict, because = Verdict.LOST, "the job ended through no fault of the run"
    elif exit_code == 0 or (seen.state == "COMPLETED" and exit_code is None):
        because = "the job ended without an error but the run is not finished"
    elif exit_code is not None:
        because = f"the training failed with exit code {exit_code}"
    else:
        because = "the job failed" if seen.state is not None else "the job vanished without an exit code"
    return Decision(verdict, f"{because}: {_described(seen)}")


def _described(seen: Sighting) -> str:
    """Describe a sighting, such as `PENDING (BeginTime)` or `RUNNING on n[1-2]`."""
    if seen.state is None:
        return "no record in SLURM"
    where = f" on {seen.nodes}" if seen.nodes else ""
    return f"{seen.state}{where}{f' ({seen.reason})' if seen.reason else ''}"
