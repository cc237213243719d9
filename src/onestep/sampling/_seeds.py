"""Random numbers that belong to a seed: one stream an image, so no image depends on the images beside it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class PerSeedRandom:
    """One generator a seed; every draw gives each of the seeds its own next numbers.

    The reference's order is: the noise, then the class, then the noise that a sampler adds on its way.

    Args:
        seeds: Integers, taken modulo 2^32.
    """

    # Differs from the reference: its streams are those of the device it samples on; here they are always the CPU's,
    # so that a seed is the same image on every machine.
    def __init__(self, seeds: Sequence[int]) -> None:
        self._streams = [torch.Generator().manual_seed(int(seed) % 2**32) for seed in seeds]

    def normal(self, shape: Sequence[int], *, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return standard normal numbers [N, *shape] on the CPU; float64 is another draw than float32."""
        numbers = torch.empty(len(self._streams), *shape, dtype=dtype)
        for row, stream in zip(numbers, self._streams, strict=True):
            row.normal_(generator=stream)
        return numbers

    def integers(self, high: int) -> Tensor:
        """Return one integer in [0, high) for each seed, int64 [N] on the CPU."""
        draws = [torch.randint(high, (), generator=stream) for stream in self._streams]
        return torch.stack(draws) if draws else torch.empty(0, dtype=torch.int64)


def per_seed_noise(seeds: Sequence[int], shape: tuple[int, ...]) -> Tensor:
    """Return the noise that each seed stands for: standard normal, float32 [N, *shape], on the CPU."""
    return PerSeedRandom(seeds).normal(shape)
