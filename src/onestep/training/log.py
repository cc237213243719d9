"""What a run says while it trains: one JSON line a record in a file, one progress line on the terminal."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onestep import distributed
from onestep.distributed import Ranks
from onestep.training.step import PhaseReport


@dataclass(frozen=True, kw_only=True)
class WindowState:
    """A window that is taken apart.

    Attributes:
        sums: float64 [ranks, sums].
        counts: Of each sum: kind, name, and how many steps it holds.
        replaced: Gradient entries that were not finite, the same on all ranks.
        entries: Gradient entries.
    """

    sums: Tensor
    counts: list[list[Any]]
    replaced: int
    entries: int


class Window:
    """Sums of what phases reported since the last record, kept on the device until they are asked for."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, str], Tensor] = {}
        self._counts: dict[tuple[str, str], int] = defaultdict(int)
        self._replaced: Tensor | None = None
        self._entries = 0

    def add(self, reports: list[PhaseReport]) -> None:
        """Take in the reports of one step."""
        for report in reports:
            self._add("losses", report.name, report.loss)
            for name, value in report.observed.items():
                self._add("observed", name, value)
            self._replaced = report.replaced if self._replaced is None else self._replaced + report.replaced
            self._entries += report.entries

    def _add(self, kind: str, name: str, value: Tensor) -> None:
        key = (kind, name)
        value = value.detach().double()
        self._sums[key] = value if key not in self._sums else self._sums[key] + value
        self._counts[key] += 1

    def means(self, *, ranks: Ranks) -> dict[str, dict[str, float | None]]:
        """Return means over steps and ranks: {"losses": {phase: ...}, "observed": {name: ...}}; None if not finite."""
        keys = sorted(self._sums)
        values = distributed.average(torch.stack([self._sums[key] / self._counts[key] for key in keys]), ranks=ranks)
        found: dict[str, dict[str, float | None]] = {"losses": {}, "observed": {}}
        for (kind, name), value in zip(keys, values.tolist(), strict=True):
            found[kind][name] = value if value - value == 0 else None
        return found

    def state(self, *, ranks: Ranks) -> WindowState:
        """Return what a resumed run needs to go on with this window, to the bit; every rank must call this."""
        keys = sorted(self._sums)
        sums = torch.stack([self._sums[key] for key in keys]) if keys else torch.zeros(0, dtype=torch.float64)
        return WindowState(
            sums=torch.stack(distributed.gather(sums, ranks=ranks)),
            counts=[[*key, self._counts[key]] for key in keys],
            replaced=self.replaced()[0],
            entries=self._entries,
        )

    def restore(self, state: WindowState, *, ranks: Ranks) -> None:
        """Put back what `state` returned; of another number of ranks, each takes the mean."""
        same = len(state.sums) == ranks.world
        sums = (state.sums[ranks.rank] if same else state.sums.mean(0)).to(ranks.device)
        for (kind, name, count), value in zip(state.counts, sums, strict=True):
            self._sums[kind, name], self._counts[kind, name] = value, count
        self._replaced, self._entries = torch.tensor(state.replaced, device=ranks.device), state.entries

    def replaced(self) -> tuple[int, float]:
        """Return how many gradient entries were not finite, and their share of all."""
        count = 0 if self._replaced is None else int(self._replaced)
        return count, count / max(self._entries, 1)


class RunLog:
    """The file log.jsonl; after a resume, records beyond the state it resumed from are cut off."""

    def __init__(self, path: Path, *, bytes_kept: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "ab")  # noqa: SIM115 - lives as long as the run
        self._file.truncate(bytes_kept)

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record and hand it to the operating system."""
        self._file.write(json.dumps(record, allow_nan=False).encode() + b"\n")
        self._file.flush()

    def settled_bytes(self) -> int:
        """Flush the log to disk and return its length, which a training state remembers."""
        os.fsync(self._file.fileno())
        return self._file.seek(0, os.SEEK_END)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Progress:
    """One line on the terminal every few seconds: images, rate, time left, losses."""

    def __init__(self, name: str, *, images: int, every_seconds: float = 10.0) -> None:
        self._name, self._images, self._every = name, images, every_seconds
        self._started = self._said = time.monotonic()
        self._first: int | None = None

    def show(self, images_seen: int, *, losses: Mapping[str, float | None]) -> None:
        """Print the line if it is time, and always at the end."""
        now = time.monotonic()
        if self._first is None:
            self._first, self._started = images_seen, now
        if now - self._said < self._every and images_seen < self._images:
            return
        self._said = now
        rate = (images_seen - self._first) / max(now - self._started, 1e-9)
        print(
            progress_line(self._name, images_seen, self._images, rate=rate, losses=losses), file=sys.stderr, flush=True
        )


def progress_line(name: str, images_seen: int, images: int, *, rate: float, losses: Mapping[str, float | None]) -> str:
    """Return e.g. `digits_d2o  12,800/40,000 images  32%  310 images/s  1:28 left  discriminator 21.3`."""
    parts = [name, f"{images_seen:,}/{images:,} images", f"{100 * images_seen / images:.0f}%"]
    if rate > 0:
        parts += [f"{rate:.0f} images/s", f"{clock((images - images_seen) / rate)} left"]
    parts += [f"{phase} {value:.4g}" for phase, value in losses.items() if value is not None]
    return "  ".join(parts)


def clock(seconds: float) -> str:
    """Return seconds as `m:ss`, or `h:mm:ss` from one hour on."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def peak_memory_mib(device: torch.device) -> int:
    """Return the peak memory of this process in MiB: of the device if it is CUDA, else resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) >> 20
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
