"""Random numbers of a batch: each image of a run has a stream of its own, on whichever rank and in whichever order."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

# Devices that copy from pinned memory while the host continues.
PINNED = ("cuda",)


class Draw(NamedTuple):
    """One draw of random numbers: float32 [B, *shape], standard normal, or uniform in [0, 1)."""

    law: Literal["normal", "uniform"]
    shape: tuple[int, ...]


def drawn_rows(
    draws: Sequence[Draw], *, seed: int, phase: str, rows: Sequence[int], pinned: bool = False
) -> Iterator[Tensor]:
    """Yield the numbers of each of the first draws of a phase, on the CPU; see `CountedRows`."""
    streams = _streams(seed=seed, phase=phase, rows=rows) if draws else []
    return (_filled(streams, draw, pinned=pinned) for draw in draws)


def _streams(*, seed: int, phase: str, rows: Sequence[int]) -> list[np.random.Generator]:
    key = np.array([seed, zlib.crc32(phase.encode())], dtype=np.uint64)
    return [
        np.random.Generator(np.random.Philox(key=key, counter=np.array([0, 0, row, 0], dtype=np.uint64)))
        for row in rows
    ]


def _filled(streams: Sequence[np.random.Generator], draw: Draw, *, pinned: bool) -> Tensor:
    numbers = torch.empty((len(streams), *draw.shape), dtype=torch.float32, pin_memory=pinned)
    for stream, row in zip(streams, numbers.view(len(streams), math.prod(draw.shape)).numpy(), strict=True):
        if draw.law == "normal":
            stream.standard_normal(out=row, dtype=np.float32)
        else:
            stream.random(out=row, dtype=np.float32)
    return numbers


class CountedRows:
    """Random numbers of a batch: image n of the run has the Philox stream (seed, phase, n) on whichever rank.

    The stream follows from the number of images seen, so it is not part of the state.
    Differs from the reference: there each rank draws from its own global generator, so results depend on their number.

    Attributes:
        draws: What was drawn so far.
    """

    def __init__(
        self,
        *,
        seed: int,
        phase: str,
        rows: Sequence[int],
        device: torch.device,
        ahead: Sequence[tuple[Draw, Tensor]] = (),
    ) -> None:
        """Start the streams; `ahead` are the numbers of the first draws, made before they are requested.

        Another draw than the next one of `ahead` starts the streams again, and skips what was drawn.
        """
        self._origin: dict[str, Any] = {"seed": seed, "phase": phase, "rows": rows}
        self._device, self._ahead = device, ahead
        self._started: list[np.random.Generator] | None = None
        self.draws: list[Draw] = []

    def normal(self, *shape: int) -> Tensor:
        """Return new standard normal numbers, float32 [B, *shape]."""
        return self._next(Draw("normal", shape))

    def uniform(self, *shape: int) -> Tensor:
        """Return new uniform numbers in [0, 1), float32 [B, *shape]."""
        return self._next(Draw("uniform", shape))

    def _next(self, draw: Draw) -> Tensor:
        before, pinned = len(self.draws), self._device.type in PINNED
        self.draws.append(draw)
        if self._started is None and before < len(self._ahead) and self._ahead[before][0] == draw:
            numbers = self._ahead[before][1]
        else:
            if self._started is None:
                self._started = _streams(**self._origin)
                for earlier in self.draws[:before]:
                    _filled(self._started, earlier, pinned=False)
            numbers = _filled(self._started, draw, pinned=pinned)
        return numbers.to(self._device, non_blocking=True)
