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
    """

    def __init__(self, log: Path, *, place: Path) -> None:
        self._log, self._place = log, place
        self._offset = self._remembered()

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
        yield from content[:whole].decode(errors="replace").splitlines()
        self._offset += whole
        write_text(self._place, json.dumps({"log": self._log.name, "bytes": self._offset}))

    def _read(self) -> bytes:
        try:
            with open(self._log, "rb") as file:
                file.seek(self._offset)
                return file.read(_MOST_BYTES)
        except OSError:
            return b""


def endings(folder: Path, job_id: str, *, lines: int = 40, ranks: int = 2) -> Iterator[str]:
    """Yield the last lines of a failed job's logs: of the ranks that say what went wrong, else of rank 0."""
    logs = sorted(folder.glob(f"{job_id}_*_log.out"), key=lambda path: int(path.name.split("_")[1]))
    texts = {path: path.read_text(errors="replace") for path in logs}
    telling = [path for path, text in texts.items() if "Traceback" in text or "error:" in text]
    for path in telling[:ranks] or logs[:1]:
        yield f"--- {path}, its last lines:"
        yield from texts[path].splitlines()[-lines:]
