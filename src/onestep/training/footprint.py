"""The GPU memory that a training needs, as numbers; `onestep.training.memory` computes them. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

ALLOWANCE = 3 << 29
"""Bytes of a GPU for its context, workspaces and fragmentation: 1.5 GiB, assumed and not measured."""


@dataclass(frozen=True, kw_only=True)
class PhaseMemory:
    """Bytes of one phase, on top of what stays between phases.

    Attributes:
        saved: Saved for the backward pass, per image; `saved_fixed` is the part that no image adds to, such as weights
            that the spectral norm divides.
        per_image: Peak of forward and backward pass, per image; `fixed` is the part that no image adds to.
        update: Peak while gradients are settled and weights updated.
        gradients: Gradients of the role that it trains.
        is_divisible: Whether that role is a denoiser, which processes may hold in shards.
    """

    saved: float
    saved_fixed: float
    per_image: float
    fixed: float
    update: int
    gradients: int
    is_divisible: bool = False


@dataclass(frozen=True, kw_only=True)
class Divisible:
    """Bytes of denoisers, which processes may hold in shards (`shard: true`).

    Attributes:
        weights: Parameters; `averages`, `moments` and `gradients` as in `Footprint`.
        copies: Of weights in other number types, which networks in shards do without.
        gathered: Weights and gradients that a process has as wholes at a time: two blocks, one block's gradients, and
            what is in no block.
    """

    weights: int = 0
    averages: int = 0
    moments: int = 0
    gradients: int = 0
    copies: int = 0
    gathered: int = 0


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """GPU memory of a training, in bytes.

    Attributes:
        weights: Parameters and buffers of all networks, with copies in other number types.
        averages: EMAs.
        moments: Of the optimizers.
        gradients: Of all roles, which stay until their next phase.
        phases: By name.
        flops: Floating-point operations of each phase per image, two per multiply-add.
        every: Steps from one use of each phase to the next.
        divisible: The part of it that processes may share.
    """

    weights: int
    averages: int
    moments: int
    gradients: int
    phases: Mapping[str, PhaseMemory]
    flops: Mapping[str, float]
    every: Mapping[str, int]
    divisible: Divisible = Divisible()

    def divided(self, processes: int) -> Footprint:
        """Return the footprint of one of several processes that hold denoisers in shards."""
        own = self.divisible
        if processes == 1 or not own.weights:
            return self

        def rest(whole: int, part: int) -> int:
            return whole - part + -(-part // processes)

        phases = {
            name: replace(each, update=-(-each.update // processes), gradients=-(-each.gradients // processes))
            if each.is_divisible
            else each
            for name, each in self.phases.items()
        }
        return replace(
            self,
            weights=rest(self.weights - own.copies, own.weights) + own.gathered,
            averages=rest(self.averages, own.averages),
            moments=rest(self.moments, own.moments),
            gradients=rest(self.gradients, own.gradients),
            phases=phases,
            divisible=Divisible(),
        )

    @property
    def work(self) -> float:
        """Floating-point operations of an average step, per image."""
        return sum(count / self.every[name] for name, count in self.flops.items())

    @property
    def resident(self) -> int:
        """What stays between phases."""
        return self.weights + self.averages + self.moments + self.gradients

    def peak(self, rows: int, *, accumulates: bool = False) -> int:
        """Return the peak with `rows` images of a rank at once, and gradients that accumulate or not."""
        each = (self.peak_of(name, rows, accumulates=accumulates) for name in self.phases)
        return max(each, default=self.resident)

    def peak_of(self, phase: str, rows: int, *, accumulates: bool = False) -> int:
        """Return the peak of one phase; see `peak`."""
        found = self.phases[phase]
        # What is computed first has no gradients of its role beside it.
        held = self.resident - (0 if accumulates else found.gradients)
        return max(held + round(found.fixed + rows * found.per_image), self.resident + found.update)

    def largest(self, share: int, *, memory: int) -> int | None:
        """Return the most of a rank's `share` images that fit `memory` bytes at once; None if not even one does."""
        room = memory - ALLOWANCE
        fitting = (rows for rows in range(share, 0, -1) if self.peak(rows, accumulates=rows < share) <= room)
        return next(fitting, None)


def footprint_of(document: Mapping[str, Any]) -> Footprint:
    """Return the values of `dataclasses.asdict(footprint)`; TypeError or AttributeError: it is of another version."""
    phases = {name: PhaseMemory(**each) for name, each in document["phases"].items()}
    return Footprint(**{**document, "phases": phases, "divisible": Divisible(**document["divisible"])})
