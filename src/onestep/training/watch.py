"""What watches a training: it sees records and snapshots as they are written, and changes neither losses nor files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from onestep.distributed import Ranks
from onestep.training.assembly import Training


class Watch(Protocol):
    """Called in rank 0 alone, between two steps; no method raises, or draws from a random stream of the training."""

    def begin(self, images_seen: int) -> None:
        """Start at the beginning, or at the state of a resume: what came after it is not part of the run."""
        ...

    def record(self, record: Mapping[str, Any]) -> None:
        """Take a record of the log."""
        ...

    def snapshots(self, *, before: int, now: int) -> float:
        """Take the snapshots from `before` to `now` images, which are on disk; return the seconds it took."""
        ...

    def close(self) -> None:
        """Finish what is open."""
        ...


MakeWatch = Callable[[Training, Path, Ranks], Watch]
"""Called with the training, its work folder and its ranks."""


class Unwatched:
    """No watch."""

    def begin(self, images_seen: int) -> None:
        """Do nothing; likewise below."""

    def record(self, record: Mapping[str, Any]) -> None:
        """Do nothing."""

    def snapshots(self, *, before: int, now: int) -> float:
        """Take no time."""
        return 0.0

    def close(self) -> None:
        """Do nothing."""


def watch_of(make: MakeWatch | None, training: Training, *, folder: Path, ranks: Ranks) -> Watch:
    """Return what watches a training: in other ranks than the first, and without `make`, nothing."""
    return Unwatched() if make is None or not ranks.leads else make(training, folder, ranks)
