"""SLURM through its commands: job states, cancellation, accounting. A failing command counts as no answer."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Collection
from dataclasses import dataclass

# States of a job that has not ended or that SLURM requeues. REQUEUED is sacct's state of a finished start of a job
# that waits for its next start.
# fmt: off
ACTIVE = frozenset({
    "PENDING", "CONFIGURING", "RUNNING", "SUSPENDED", "COMPLETING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED",
    "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED", "SPECIAL_EXIT", "RESV_DEL_HOLD",
    "EXPEDITING", "LAUNCH_FAILED", "POWER_UP_NODE", "UPDATE_DB",  # after SLURM 22.05
})
# fmt: on

# Environment variables that change the output of SLURM's commands or the cluster they query.
_CHANGING = ("SQUEUE_", "SACCT_", "SCANCEL_", "SCONTROL_", "SLURM_TIME_FORMAT", "SLURM_CLUSTERS")
# Fields of squeue's lines; the reason may contain any character.
_QUEUE_FIELDS = ("JobID", "State", "RestartCnt", "NodeList", "Reason")
_OF_A_CLUSTER = ("squeue", "sacct", "scancel", "scontrol", "sinfo")
_ACCOUNT_FIELDS = ("JobIDRaw", "State", "ExitCode", "ElapsedRaw", "NodeList", "JobName")


@dataclass(frozen=True, kw_only=True)
class Sighting:
    """State of a job at one query."""

    state: str | None  # of the newest start (`PENDING`, ...); None if no program has a record of the job
    reason: str = ""  # for waiting or ending
    restarts: int | None = None  # requeues, if known
    nodes: str = ""  # such as `n[1-2]`
    # Programs that answered, of squeue, sacct, scontrol in this order until one has a record. "Invalid job id" is an
    # answer; an error, a timeout or an absent program is not.
    answered: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """SLURM through its commands. No method raises when a command fails."""

    name: str | None = None  # of another cluster, as for `--clusters`; None for that of this machine
    timeout_seconds: float = 30.0  # of one command; a slower one counts as no answer
    cancel_seconds: float = 10.0  # for the effect of `cancel`

    def look(self, job_id: str) -> Sighting:
        """Return the state of a job by squeue, else by sacct, else by scontrol."""
        answered: set[str] = set()
        queries = {"squeue": self._in_queue, "sacct": self._in_accounting, "scontrol": self._in_controller}
        for program, query in queries.items():
            found = query(job_id)
            if found is None:
                continue
            answered.add(program)
            # The controller forgets no active job. A job that only accounting calls active ended unrecorded.
            if found and not (program == "sacct" and "squeue" in answered and found[0][0] in ACTIVE):
                state, reason, nodes, restarts = found[0]
                return Sighting(
                    state=state,
                    reason="" if reason == "None" else reason,
                    restarts=int(restarts) if restarts.isdecimal() else None,
                    nodes="" if nodes in ("(null)", "None assigned", "n/a", "N/A") else nodes,
                    answered=frozenset(answered),
                )
        return Sighting(state=None, answered=frozenset(answered))

    def active_jobs(self, name: str) -> list[str] | None:
        """Return the ids of all users' active jobs of exactly this name; None if squeue does not answer."""
        lines = self.lines("squeue", "--noheader", "--states=all", f"--name={name}", "--format=%i|%T|%j")
        if lines is None:
            return None
        rows = [line.strip().split("|", 2) for line in lines if line.count("|") >= 2]
        # A COMPLETING job counts although cancelled jobs complete, too: it may be about to be requeued.
        return [job_id for job_id, state, job_name in rows if state in ACTIVE and job_name == name]

    def cancel(self, job_id: str) -> bool:
        """Cancel a job; return True once squeue shows that it ended or is about to."""
        answer = self.ask("scancel", job_id)
        # A job that completes without a successful scancel may be about to be requeued.
        remaining = ACTIVE - {"COMPLETING"} if answer is not None and answer.returncode == 0 else ACTIVE
        deadline = time.monotonic() + self.cancel_seconds
        while True:
            found = self._in_queue(job_id)
            if found is not None and all(state not in remaining for state, *_ in found):
                return True
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.25)

    def run_seconds(self, job_id: str) -> int | None:
        """Return the run time of a job in seconds, summed over its restarts; None without accounting."""
        seconds = [row["ElapsedRaw"] for row in self._accounted(job_id) or ()]
        return sum(map(int, seconds)) if seconds and all(map(str.isdecimal, seconds)) else None

    def ask(self, *command: str, unset: Collection[str] = ()) -> subprocess.CompletedProcess[str] | None:
        """Run a command with English messages, without the variables `unset`; None if it is absent or too slow.

        A command of SLURM gets the name of this cluster.
        """
        if self.name is not None and command[0] in _OF_A_CLUSTER:
            command = (command[0], f"--clusters={self.name}", *command[1:])
        kept = {key: text for key, text in os.environ.items() if not key.startswith(_CHANGING) and key not in unset}
        try:
            # A new session: Ctrl-C at the launcher must not reach the scancel that it runs.
            process = subprocess.Popen(
                command,
                env={**kept, "LC_ALL": "C"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,
            )
        except OSError:
            return None
        with process:
            try:
                output, errors = process.communicate(timeout=self.timeout_seconds)
            except subprocess.TimeoutExpired:
                return None
            finally:
                # With its group: the child of a wrapper script would keep the pipe open.
                if process.poll() is None:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
        return subprocess.CompletedProcess(command, process.returncode, output, errors)

    def lines(self, *command: str) -> list[str] | None:
        """Return the output of a query, empty without a record of a job; None without an answer."""
        answer = self.ask(*command)
        if answer is None or (answer.returncode != 0 and "invalid job id specified" not in answer.stderr.lower()):
            return None
        return answer.stdout.splitlines()

    # The next three return state, reason, nodes, restarts of a job; nothing without a record, None without an answer.

    def _in_queue(self, job_id: str) -> list[list[str]] | None:
        # With a bar after each, in place of columns that cut what is longer.
        fields = ",".join(f"{name}:|" for name in _QUEUE_FIELDS)
        lines = self.lines("squeue", "--noheader", "--states=all", f"--jobs={job_id}", f"--Format={fields}")
        if lines is None:
            return None
        rows = [[word.strip() for word in line.split("|", len(_QUEUE_FIELDS) - 1)] for line in lines]
        # Of another cluster, a line with its name comes first.
        found = [dict(zip(_QUEUE_FIELDS, row, strict=False)) for row in rows if row[0] == job_id and len(row) > 1]
        return [
            [row["State"], row.get("Reason", "").rstrip("|"), row.get("NodeList", ""), row.get("RestartCnt", "")]
            for row in found
        ]

    def _in_accounting(self, job_id: str) -> list[list[str]] | None:
        rows = self._accounted(job_id)
        if not rows:
            return None if rows is None else []
        state, *words = rows[-1]["State"].split()
        code = rows[-1]["ExitCode"]
        reasons = [" ".join(words), f"exit code {code}" if code != "0:0" else ""]
        restarts = len(rows) - (state != "REQUEUED")
        return [[state.rstrip("+"), ", ".join(filter(None, reasons)), rows[-1]["NodeList"], str(restarts)]]

    def _in_controller(self, job_id: str) -> list[list[str]] | None:
        # KEY=VALUE in one line; the reason may contain spaces.
        patterns = (r" JobState=(\S+)", r" Reason=(.*?) Dependency=", r" NodeList=(\S+)", r" Restarts=(\d+)")
        lines = self.lines("scontrol", "--oneliner", "show", "job", job_id)
        rows = [[re.search(pattern, line) for pattern in patterns] for line in lines or () if "JobState=" in line]
        return None if lines is None else [[match[1] if match else "" for match in row] for row in rows]

    def _accounted(self, job_id: str) -> list[dict[str, str]] | None:
        """Return accounting's record of each start of a job, the newest last; None if sacct does not answer."""
        command = ("sacct", "--allocations", "--duplicates", "--noheader", "--parsable2", f"--jobs={job_id}")
        lines = self.lines(*command, f"--format={','.join(_ACCOUNT_FIELDS)}")
        if lines is None:
            return None
        split = [line.split("|", len(_ACCOUNT_FIELDS) - 1) for line in lines]
        fitting = [row for row in split if len(row) == len(_ACCOUNT_FIELDS) and row[0] == job_id]
        rows = [dict(zip(_ACCOUNT_FIELDS, row, strict=True)) for row in fitting]
        # Ids restart at 1 where a controller lost its state; another name means another job.
        return [row for row in rows if row["JobName"] == rows[-1]["JobName"]]
