"""What rank 0 of a job prints, passed on as it comes, line by line and never twice, over all lives of the job."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from onestep.files import write_text

_MOST_BYTES = 1 << 20


class LogStream:
    """Follows `{job}_0_log.out`, which every life of the job appends to.

    Args:
        log: The file; it need not exist yet.
        place: File that remembers how far it was passed on, for the launcher that comes after this one.

    Attributes:
        offset: How far that is, in bytes.
    """

    def __init__(self, log: Path, *, place: Path) -> None:
        self._log, self._place = log, place
        self.offset = self._remembered()

    def _remembered(self) -> int:
        try:
            found = json.loads(self._place.read_text())
            return found["bytes"] if found["log"] == self._log.name else 0
        except (OSError, ValueError, KeyError, TypeError):
            return 0

    def lines(self) -> Iterator[str]:
        """Yield the whole lines that came since."""
        content = self._read()
        whole = content.rfind(b"\n") + 1
        if whole == 0:
            return
        # First remembered, then told: who is killed in between leaves out lines of a log that is there anyway.
        self.offset += whole
        write_text(self._place, json.dumps({"log": self._log.name, "bytes": self.offset}))
        yield from content[:whole].decode(errors="replace").splitlines()

    def _read(self) -> bytes:
        try:
            with open(self._log, "rb") as file:
                file.seek(self.offset)
                return file.read(_MOST_BYTES)
        except OSError:
            return b""


def retell(folder: Path, *, place: Path, log: Path) -> None:
    """Append to a log what earlier launchers passed on of a run's jobs and it does not hold: Snakemake empties logs.

    Args:
        folder: Where rank 0 of each job prints to.
        place: File that remembers how far the newest of them was passed on.
        log: The log; it need not exist.
    """
    said = log.read_text(errors="replace") if log.exists() else ""
    logs = sorted(folder.glob("*_0_log.out"), key=lambda path: path.stat().st_mtime)
    lines = [
        f"[{path.name.partition('_')[0]}] {line}\n"
        for path in logs
        if f"[{path.name.partition('_')[0]}] " not in said
        for line in _passed_on(path, place=place, newest=path == logs[-1])
    ]
    if lines:
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "a") as file:
            file.writelines(lines)


def _passed_on(path: Path, *, place: Path, newest: bool) -> list[str]:
    """Return the lines of a job that a launcher has dealt with: of all but the newest job, these are all."""
    content = path.read_bytes()
    kept = content[: LogStream(path, place=place).offset] if newest else content
    return kept.decode(errors="replace").splitlines()


def endings(folder: Path, job_id: str, *, lines: int = 40, ranks: int = 2) -> Iterator[str]:
    """Yield the last lines of a failed job's logs: of the ranks that say what went wrong, else of rank 0."""
    logs = sorted(folder.glob(f"{job_id}_*_log.out"), key=lambda path: int(path.name.split("_")[1]))
    texts = {path: path.read_text(errors="replace") for path in logs}
    telling = [path for path, text in texts.items() if "Traceback" in text or "error:" in text]
    for path in telling[:ranks] or logs[:1]:
        yield f"--- {path}, its last lines:"
        yield from texts[path].splitlines()[-lines:]


def complaint(folder: Path, job_id: str, *, lines: int = 40) -> str | None:
    """Return the one line in which a job's processes said at their end what the user can mend; None if they did not."""
    for log in sorted(folder.glob(f"{job_id}_*_log.out"), key=lambda path: int(path.name.split("_")[1])):
        for line in log.read_text(errors="replace").splitlines()[-lines:]:
            if line.startswith("error: "):
                return line.removeprefix("error: ")
    return None
