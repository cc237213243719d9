"""Print a job's log line by line as it grows, each line once across launchers and restarts."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from onestep.files import write_text

_MOST_BYTES = 1 << 20


class LogTail:
    """Reader of `{job}_0_log.out`, to which every start of the job appends, from the bytes in the file `place` on."""

    def __init__(self, log: Path, *, place: Path) -> None:
        self._log, self._place, self.offset = log, place, 0
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            found = json.loads(place.read_text())
            self.offset = found["bytes"] if found["log"] == log.name else 0

    def lines(self) -> Iterator[str]:
        """Yield the complete lines since the last call."""
        try:
            with open(self._log, "rb") as file:
                file.seek(self.offset)
                content = file.read(_MOST_BYTES)
        except OSError:
            return
        complete = content.rfind(b"\n") + 1
        if complete == 0:
            return
        # Store the position first: a kill in between omits lines (the log keeps them) but repeats none.
        self.offset += complete
        write_text(self._place, json.dumps({"log": self._log.name, "bytes": self.offset}))
        yield from content[:complete].decode(errors="replace").splitlines()


def restore(folder: Path, *, place: Path, log: Path) -> None:
    """Append to a rule's log the lines that earlier launchers printed, since Snakemake empties logs at each start.

    Args:
        folder: Folder of the logs of rank 0 of each job.
        place: File with the position in the newest of them.
        log: The rule's log; it may not exist.
    """
    existing = log.read_text(errors="replace") if log.exists() else ""
    logs = sorted(folder.glob("*_0_log.out"), key=lambda path: path.stat().st_mtime)
    lines = []
    for path in logs:
        mark = f"[{path.name.partition('_')[0]}] "
        if mark not in existing:
            # All lines were printed, except of the newest job.
            content = path.read_bytes()[: LogTail(path, place=place).offset if path == logs[-1] else None]
            lines += [f"{mark}{line}\n" for line in content.decode(errors="replace").splitlines()]
    if lines:
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "a") as file:
            file.writelines(lines)


def last_lines(folder: Path, job_id: str, *, lines: int = 40, ranks: int = 2) -> Iterator[str]:
    """Yield the last lines of a failed job's logs: of the first ranks with an error, else of rank 0."""
    texts = {path: path.read_text(errors="replace") for path in _rank_logs(folder, job_id)}
    failed = [path for path, text in texts.items() if "Traceback" in text or "error:" in text]
    for path in failed[:ranks] or list(texts)[:1]:
        yield f"--- {path}, its last lines:"
        yield from texts[path].splitlines()[-lines:]


def user_error(folder: Path, job_id: str, *, lines: int = 40) -> str | None:
    """Return the first `error: ...` among the last lines of a job's logs, without the prefix, or None."""
    for log in _rank_logs(folder, job_id):
        for line in log.read_text(errors="replace").splitlines()[-lines:]:
            if line.startswith("error: "):
                return line.removeprefix("error: ")
    return None


def _rank_logs(folder: Path, job_id: str) -> list[Path]:
    return sorted(folder.glob(f"{job_id}_*_log.out"), key=lambda path: int(path.name.split("_")[1]))
