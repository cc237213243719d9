"""What to make of what SLURM says of a job: wait, or how it ended. Nothing here asks anybody or sleeps."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from onestep.exits import Exit
from onestep.launch.cluster import ALIVE, Sighting

# Ends that are the run's own, or somebody's will.
_OWN_ENDS = frozenset({"FAILED", "OUT_OF_MEMORY", "CANCELLED", "DEADLINE"})
# Ends through no fault of the run; SLURM may requeue the job from each of them for a while.
_NO_FAULT = frozenset({"NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "TIMEOUT", "REVOKED", "RECONFIG_FAIL"})
_HELD = frozenset({"REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"})
# The exit code of a training that was asked to stop and has saved its state.
_STOPPED_CODE = Exit.STOPPED
# A job that is requeued can be seen in its old end once.
_CONFIRMATION_SECONDS = 5.0


class Verdict(enum.Enum):
    """What a launcher does next.

    WAIT: look again later. FINISHED: publish. FAILED: say why and give up. LOST: the job is gone through no fault of
    the run, submit another. UNREACHABLE: SLURM is silent; give up watching, the job may well go on.
    """

    WAIT = "wait"
    FINISHED = "finished"
    FAILED = "failed"
    LOST = "lost"
    UNREACHABLE = "unreachable"


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """A verdict, and the reason for it in one line; while nothing changes, the line does not change either."""

    verdict: Verdict
    because: str


@dataclass(kw_only=True)
class Judge:
    """Judges one job, look after look; it remembers since when things are as they are.

    Times are seconds of one clock that never goes back.

    Attributes:
        grace_seconds: How long SLURM may take to requeue a job that lost its node, was preempted or ran out of time.
        vanished_seconds: How long the files of a job that is over may take to be seen here.
        patience_seconds: How long SLURM may be silent.
    """

    grace_seconds: float
    vanished_seconds: float
    patience_seconds: float
    _last: Sighting | None = field(default=None, init=False)
    _since: float = field(default=0.0, init=False)
    _heard: float | None = field(default=None, init=False)

    def judge(self, sighting: Sighting, *, now: float, done: bool, exit_code: int | None, stopped: bool) -> Judgement:
        """Return what one look at the job means.

        Args:
            sighting: What SLURM said.
            now: When, in seconds.
            done: Whether the run's done.json is there.
            exit_code: What the batch script wrote at the end of the newest life, None where it wrote nothing (yet).
            stopped: Whether a training of the newest life saved its state and left because it was asked to.
        """
        if done:
            return Judgement(verdict=Verdict.FINISHED, because="the run is finished")
        if self._heard is None:
            self._heard = now
        if not _tells(sighting):
            return self._silence(now)
        self._heard = now
        seen = self._remember(sighting, now=now)
        if seen.state in ALIVE:
            return _wait(_waiting(seen))
        if seen.state is not None and seen.state not in _OWN_ENDS | _NO_FAULT | {"COMPLETED"}:
            return self._strange(seen, now=now)
        delay = self._delay(seen, exit_code=exit_code)
        if now - self._since < delay:
            return _wait(f"{_described(seen)}; looking again for up to {delay:g} s before this counts")
        return _ended(seen, exit_code=exit_code, stopped=stopped)

    def _remember(self, sighting: Sighting, *, now: float) -> Sighting:
        """Return what counts now; note since when."""
        last = self._last
        if sighting.state is None and last is not None and last.state is not None and last.state not in ALIVE:
            # SLURM forgets a job some minutes after its end: that end still is the last word.
            return last
        if last is None or not _same(last, sighting):
            self._since = now
        self._last = sighting
        return sighting

    def _silence(self, now: float) -> Judgement:
        if now - self._heard < self.patience_seconds:
            return _wait("SLURM does not answer")
        because = f"SLURM has not answered for {self.patience_seconds:g} s; the job may well go on"
        return Judgement(verdict=Verdict.UNREACHABLE, because=because)

    def _strange(self, seen: Sighting, *, now: float) -> Judgement:
        """Wait on a word that is not known here, but not for ever."""
        because = f"SLURM says {_described(seen)}, a state that is not known here"
        return Judgement(
            verdict=Verdict.UNREACHABLE if now - self._since >= self.patience_seconds else Verdict.WAIT,
            because=because,
        )

    def _delay(self, seen: Sighting, *, exit_code: int | None) -> float:
        """Return how long an end must stand before it counts, in seconds."""
        if seen.state in _NO_FAULT:
            return self.grace_seconds
        # A failed training wrote its exit code, which says whether it had been asked to stop.
        if seen.state in _OWN_ENDS and (seen.state != "FAILED" or exit_code is not None):
            return min(_CONFIRMATION_SECONDS, self.vanished_seconds)
        return self.vanished_seconds


def _tells(sighting: Sighting) -> bool:
    """Whether a sighting is news: that accounting does not know a job may only mean that it lags."""
    return sighting.state is not None or bool(sighting.answered & {"squeue", "scontrol"})


def _same(last: Sighting, sighting: Sighting) -> bool:
    """Whether two sightings are of the same state of the same life, as far as the lives were counted."""
    if None in (last.restarts, sighting.restarts):
        return last.state == sighting.state
    return (last.state, last.restarts) == (sighting.state, sighting.restarts)


def _ended(seen: Sighting, *, exit_code: int | None, stopped: bool) -> Judgement:
    """Return the verdict on a job that has ended for good, without a finished run."""
    what = _described(seen)
    if seen.state == "CANCELLED":
        # Also where the training had time to save its state: whoever cancelled the job does not want another.
        return Judgement(verdict=Verdict.FAILED, because=f"the job was cancelled: {what}")
    if stopped or exit_code == _STOPPED_CODE:
        because = f"the training saved its state and stopped, and was not requeued: {what}"
        return Judgement(verdict=Verdict.LOST, because=because)
    if seen.state in _NO_FAULT:
        return Judgement(verdict=Verdict.LOST, because=f"the job ended through no fault of the run: {what}")
    if exit_code == 0 or (seen.state == "COMPLETED" and exit_code is None):
        because = f"the job ended without an error and without finishing the run: {what}"
        return Judgement(verdict=Verdict.FAILED, because=because)
    if exit_code is not None:
        return Judgement(verdict=Verdict.FAILED, because=f"the training failed with exit code {exit_code}: {what}")
    if seen.state is None:
        return Judgement(verdict=Verdict.FAILED, because="the job vanished: nobody knows it, and it left no exit code")
    return Judgement(verdict=Verdict.FAILED, because=f"the job failed: {what}")


def _wait(because: str) -> Judgement:
    return Judgement(verdict=Verdict.WAIT, because=because)


def _waiting(seen: Sighting) -> str:
    """Return what a job does that has not ended, and who must act where it is held."""
    held = seen.state in _HELD or "held" in seen.reason.lower()
    return f"{_described(seen)}{'; held until somebody calls `scontrol release` on it' if held else ''}"


def _described(seen: Sighting) -> str:
    """Return a sighting in a few words, such as `PENDING (BeginTime)` or `RUNNING on n[1-2]`."""
    if seen.state is None:
        return "SLURM does not know the job"
    where = f" on {seen.nodes}" if seen.nodes else ""
    return f"{seen.state}{where}{f' ({seen.reason})' if seen.reason else ''}"
