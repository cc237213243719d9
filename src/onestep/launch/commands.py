"""Commands that may fail, hang or be absent, asked for what they print."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Collection
from dataclasses import dataclass

# Variables that change what SLURM's commands print, or whom they ask.
_CHANGING = ("SQUEUE_", "SACCT_", "SCANCEL_", "SCONTROL_", "SLURM_TIME_FORMAT", "SLURM_CLUSTERS")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a command printed, and its exit code."""

    code: int
    output: str
    complaint: str


def ask(*command: str, timeout_seconds: float, unset: Collection[str] = ()) -> Answer | None:
    """Run a command in English; return what it printed, or None where it is absent or takes too long.

    Args:
        *command: The program and its arguments.
        timeout_seconds: How long it may take; then it is ended, with all that it started.
        unset: Variables of the environment that it does not see.
    """
    try:
        # A session of its own: Ctrl-C at the launcher must not reach the command that cancels its job.
        process = subprocess.Popen(
            command,
            env=_environment(unset),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError:
        return None
    with process:
        try:
            output, complaint = process.communicate(timeout=timeout_seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            _end(process)
    return Answer(code=process.returncode, output=output, complaint=complaint)


def _environment(unset: Collection[str]) -> dict[str, str]:
    """Return this process's environment, SLURM_CONF included, without what would change the commands' words."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_CHANGING) and name not in unset}
    return {**kept, "LC_ALL": "C"}


def _end(process: subprocess.Popen) -> None:
    """End a command and all that it started: a wrapper's child would hold the pipe open."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
