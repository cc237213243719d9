"""How far a workflow is, and how long the rest will take, from the times of the jobs that ended."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Hashable, Mapping

_SLOWEST = "train"


class Pace:
    """Jobs that are planned, run and done, by stage; times are seconds of any clock that never goes back."""

    def __init__(self) -> None:
        self._planned: Counter[str] = Counter()
        self._running: dict[Hashable, tuple[str, float]] = {}
        self._took: dict[str, list[float]] = {}
        self._since: float | None = None

    def plan(self, jobs: Mapping[str, int]) -> None:
        """Set the number of jobs of each stage."""
        self._planned = Counter(jobs)

    def begin(self, job: Hashable, stage: str, now: float) -> None:
        """Note that a job has begun."""
        self._since = now if self._since is None else self._since
        self._running[job] = (stage, now)

    def end(self, job: Hashable, now: float) -> None:
        """Note that a job has ended well; nothing for one whose beginning is not known."""
        if job in self._running:
            stage, began = self._running.pop(job)
            self._took.setdefault(stage, []).append(now - began)

    @property
    def done(self) -> int:
        """Jobs that have ended."""
        return sum(map(len, self._took.values()))

    def left(self, now: float) -> float | None:
        """Return the seconds that the rest will take, if it is worked on as the part that is done.

        The time of a job is the mean of the jobs of its stage that ended, or of all jobs if none of its stage did. None
        before one job in a hundred has ended, or, if there are trainings, before the first of them has.
        """
        planned, waits = sum(self._planned.values()), self._planned[_SLOWEST] > 0 and _SLOWEST not in self._took
        if self._since is None or self.done == 0 or 100 * self.done < planned or waits:
            return None
        spent = sum(map(sum, self._took.values())) + sum(now - began for _, began in self._running.values())
        usual = statistics.fmean(each for times in self._took.values() for each in times)
        work = 0.0
        for stage, count in self._planned.items():
            took = self._took.get(stage, [])
            work += max(0, count - len(took)) * (statistics.fmean(took) if took else usual)
        work -= sum(now - began for _, began in self._running.values())
        return max(0.0, work) * (now - self._since) / spent if spent > 0 else None

    def text(self, now: float) -> str:
        """Return both as `12/938, 1:20 h left`; empty where the plan is not known."""
        planned, left = sum(self._planned.values()), self.left(now)
        if not planned:
            return ""
        return f"{self.done}/{planned}" + ("" if left is None else f", {_spelled(left)} left")


def _spelled(seconds: float) -> str:
    minutes = max(1, round(seconds / 60))
    return f"{minutes // 60}:{minutes % 60:02} h" if minutes >= 60 else f"{minutes} min"
