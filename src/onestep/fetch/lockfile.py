"""inputs.lock.yaml: what was found where no digest is public, so that it can never change unnoticed. Commit it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from onestep.fetch.digests import Mismatch, Verified
from onestep.fetch.turns import own_turn
from onestep.files import write_text

_HEAD = "# What `onestep fetch` found the first time, and accepts from then on: commit this file.\n"


@dataclass(frozen=True, kw_only=True)
class InputsLock:
    """A file of digests by an input's published name or address; several processes may use it at once.

    Attributes:
        path: The file; it need not exist.
        turn: An empty file for taking turns at it.
    """

    path: Path
    turn: Path

    def recorded(self, key: str) -> Verified | None:
        """Return what was found the first time; None where this is the first.

        Raises:
            ValueError: The file is damaged.
        """
        entry = self._read().get(key)
        return None if entry is None else Verified(**entry)

    def record(self, key: str, verified: Verified, *, called: str) -> None:
        """Record what was found the first time.

        Raises:
            Mismatch: Another digest stands there; one line, which begins with `called`.
            ValueError: The file is damaged.
        """
        with own_turn(self.turn, called=str(self.path)):
            entries = self._read()
            before = entries.setdefault(key, asdict(verified))
            if before["sha256"] != verified.sha256:
                raise Mismatch(f"{called}: found sha256 {verified.sha256}, expected {before['sha256']} ({self.path})")
            text = _HEAD + yaml.safe_dump(entries, sort_keys=True)
            if not self.path.exists() or self.path.read_text() != text:
                write_text(self.path, text)

    def _read(self) -> dict[str, dict[str, Any]]:
        try:
            entries = yaml.safe_load(self.path.read_text()) if self.path.exists() else None
        except yaml.YAMLError as error:
            raise ValueError(self._damaged("not YAML")) from error
        entries = {} if entries is None else entries
        for key, entry in entries.items() if isinstance(entries, dict) else [("", None)]:
            if not isinstance(entry, dict) or set(entry) != {"sha256", "size"}:
                raise ValueError(self._damaged(f"{key}: found {entry!r}"))
        return entries

    def _damaged(self, found: str) -> str:
        return f"{self.path}: {found}, expected {{sha256, size}} by name; take it back from version control"
