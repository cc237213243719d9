"""What SLURM says of a job, asked through its own commands; a command that fails is silence, never news."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

from onestep.launch.commands import Answer, ask

# A job in one of these has not ended, or comes back by itself. REQUEUED is what sacct calls a life that is over while
# the job waits for its next one.
ALIVE = frozenset(
    (
        "PENDING",
        "CONFIGURING",
        "RUNNING",
        "SUSPENDED",
        "COMPLETING",
        "REQUEUED",
        "REQUEUE_HOLD",
        "REQUEUE_FED",
        "RESIZING",
        "SIGNALING",
        "STAGE_OUT",
        "STOPPED",
        "SPECIAL_EXIT",
        "RESV_DEL_HOLD",
        # Words of versions after 22.05.
        "EXPEDITING",
        "LAUNCH_FAILED",
        "POWER_UP_NODE",
        "UPDATE_DB",
    )
)

_QUEUE_WIDTHS = {"State": 32, "Reason": 128, "NodeList": 256, "RestartCnt": 12}
_ACCOUNT_FIELDS = "JobIDRaw,State,ExitCode,ElapsedRaw,NodeList,JobName"
_ANSWER_AFTER_CANCEL_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class Sighting:
    """What SLURM said of a job when it was asked.

    Attributes:
        state: SLURM's word for the newest life of the job (`PENDING`, `NODE_FAIL`, `CANCELLED`, ...); None where
            nobody knows the job.
        reason: Why it waits or ended, in SLURM's words, or nothing.
        restarts: How often it was requeued; None where it is not told.
        nodes: Where it runs or ran (`n[1-2]`), or nothing.
        answered: Which of `squeue`, `sacct` and `scontrol` answered at all. They are asked in this order, until one
            knows the job; "Invalid job id" is an answer; an error, a timeout, an absent program is none.
    """

    state: str | None
    reason: str
    restarts: int | None
    nodes: str
    answered: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """What one program knows of the newest life of a job."""

    state: str
    reason: str = ""
    restarts: int | None = None
    nodes: str = ""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """SLURM as its commands show it. No method raises because a command fails.

    Attributes:
        timeout_seconds: How long one command may take; one that takes longer did not answer.
    """

    timeout_seconds: float = 30.0

    def look(self, job_id: str) -> Sighting:
        """Return what is known of a job: by squeue, else by sacct, else by scontrol."""
        answered: set[str] = set()
        programs: dict[str, Callable[[str], list[_Seen] | None]] = {
            "squeue": self._in_queue,
            "sacct": self._in_accounting,
            "scontrol": self._in_controller,
        }
        for program, question in programs.items():
            seen = question(job_id)
            if seen is None:
                continue
            answered.add(program)
            # The controller forgets no job that lives: what accounting still calls alive has ended unrecorded.
            if seen and not (program == "sacct" and "squeue" in answered and seen[0].state in ALIVE):
                return Sighting(**vars(seen[0]), answered=frozenset(answered))
        return Sighting(state=None, reason="", restarts=None, nodes="", answered=frozenset(answered))

    def active_jobs(self, name: str) -> list[str] | None:
        """Return the ids of the jobs of any user that live under exactly this name; None where squeue is silent.

        A job that is COMPLETING counts, though cancelled ones do so, too: it may be on its way to a requeue.
        """
        answer = self.ask("squeue", "--noheader", "--states=all", f"--name={name}", "--format=%i|%T|%j")
        if answer is None or answer.code != 0:
            return None
        rows = [line.strip().split("|", 2) for line in answer.output.splitlines() if line.count("|") >= 2]
        return [job_id for job_id, state, called in rows if state in ALIVE and called == name]

    def cancel(self, job_id: str) -> bool:
        """Cancel a job; return whether it is seen to be gone, or about to go, within some seconds."""
        answer = self.ask("scancel", job_id)
        # A job that completes without having been cancelled may be on its way to a requeue.
        staying = ALIVE - {"COMPLETING"} if answer is not None and answer.code == 0 else ALIVE
        deadline = time.monotonic() + _ANSWER_AFTER_CANCEL_SECONDS
        while not self._is_none_of(staying, job_id=job_id):
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.25)
        return True

    def run_seconds(self, job_id: str) -> int | None:
        """Return how long a job has run, in seconds, over all its lives; None where accounting does not tell."""
        lives = self._lives(job_id)
        seconds = [life["ElapsedRaw"] for life in lives or ()]
        return sum(map(int, seconds)) if seconds and all(map(str.isdecimal, seconds)) else None

    def ask(self, *command: str, unset: Collection[str] = ()) -> Answer | None:
        """Run a command of SLURM, as `onestep.launch.commands.ask` does."""
        return ask(*command, timeout_seconds=self.timeout_seconds, unset=unset)

    def _is_none_of(self, states: Collection[str], *, job_id: str) -> bool:
        """Whether squeue answers, and what it says of a job, if anything, is none of some states."""
        seen = self._in_queue(job_id)
        return seen is not None and all(each.state not in states for each in seen)

    def _in_queue(self, job_id: str) -> list[_Seen] | None:
        fields = ",".join(f"{name}:{width}" for name, width in _QUEUE_WIDTHS.items())
        answer = self.ask("squeue", "--noheader", "--states=all", f"--jobs={job_id}", f"--Format={fields}")
        if answer is None or (answer.code != 0 and not _does_not_know(answer)):
            return None
        return [_row(line) for line in answer.output.splitlines() if line.strip()]

    def _in_accounting(self, job_id: str) -> list[_Seen] | None:
        lives = self._lives(job_id)
        if not lives:
            return lives
        state, *reason = lives[-1]["State"].split()
        code = lives[-1]["ExitCode"]
        said = [" ".join(reason), f"exit code {code}" if code != "0:0" else ""]
        return [
            _Seen(
                state=state.rstrip("+"),
                reason=", ".join(filter(None, said)),
                restarts=len(lives) - (state != "REQUEUED"),
                nodes=_nodes(lives[-1]["NodeList"]),
            )
        ]

    def _in_controller(self, job_id: str) -> list[_Seen] | None:
        answer = self.ask("scontrol", "--oneliner", "show", "job", job_id)
        if answer is None or (answer.code != 0 and not _does_not_know(answer)):
            return None
        return [_record(line) for line in answer.output.splitlines() if "JobState=" in line]

    def _lives(self, job_id: str) -> list[dict[str, str]] | None:
        """Return what accounting holds of each life of a job, the newest last; None where it does not answer."""
        command = ("sacct", "--allocations", "--duplicates", "--noheader", "--parsable2", f"--jobs={job_id}")
        answer = self.ask(*command, f"--format={_ACCOUNT_FIELDS}")
        if answer is None or answer.code != 0:
            return None
        names = _ACCOUNT_FIELDS.split(",")
        rows = [line.split("|", len(names) - 1) for line in answer.output.splitlines()]
        lives = [dict(zip(names, row, strict=True)) for row in rows if len(row) == len(names) and row[0] == job_id]
        # Ids begin anew where a controller lost its state: another name is another job.
        return [life for life in lives if life["JobName"] == lives[-1]["JobName"]]


def _does_not_know(answer: Answer) -> bool:
    """Whether a command that failed says that there is no such job."""
    return "invalid job id specified" in answer.complaint.lower()


def _row(line: str) -> _Seen:
    """Read a line of squeue, whose columns have the widths that were asked for."""
    cells, start = {}, 0
    for name, width in _QUEUE_WIDTHS.items():
        cells[name] = line[start : start + width].strip()
        start += width
    reason, restarts = cells["Reason"], cells["RestartCnt"]
    return _Seen(
        state=cells["State"],
        reason="" if reason == "None" else reason,
        restarts=int(restarts) if restarts.isdecimal() else None,
        nodes=_nodes(cells["NodeList"]),
    )


def _record(line: str) -> _Seen:
    """Read a job's record by scontrol, one line of KEY=VALUE in which a reason may hold spaces."""

    def found(pattern: str) -> str:
        match = re.search(pattern, line)
        return match[1] if match else ""

    reason, restarts = found(r" Reason=(.*?) Dependency="), found(r" Restarts=(\d+)")
    return _Seen(
        state=found(r" JobState=(\S+)"),
        reason="" if reason == "None" else reason,
        restarts=int(restarts) if restarts else None,
        nodes=_nodes(found(r" NodeList=(\S+)")),
    )


def _nodes(text: str) -> str:
    return "" if text in ("(null)", "None assigned", "n/a", "N/A") else text
