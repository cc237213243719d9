"""The contract of a sampler: noise to images; and the rule that an image depends on its seed alone.

Legend: B images, C H W an image, K classes. `noise` is standard normal float32 [B, C, H, W].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from onestep.sampling._generate import Samples, generate, rank_batches
from onestep.sampling._seeds import PerSeedRandom, per_seed_noise

__all__ = ["PerSeedRandom", "Sampler", "Samples", "generate", "per_seed_noise", "rank_batches"]


class Sampler(Protocol):
    """What the files of this folder hold, as frozen dataclasses."""

    @property
    def evaluations(self) -> int:
        """How often an image passes through the network (NFE)."""
        ...

    def __call__(
        self,
        generator: Callable[..., Tensor],
        noise: Tensor,
        labels: Tensor | None,
        *,
        random: PerSeedRandom | None = None,
    ) -> Tensor:
        """Turn noise into images.

        Args:
            generator: Called as `generator(x [B, C, H, W], sigma [B], labels)`, see `onestep.networks.Denoiser`.
            noise: Standard normal [B, C, H, W], on the generator's device.
            labels: One-hot classes [B, K], or None.
            random: The streams `noise` came from, for a sampler that adds noise on its way.

        Returns:
            Images [B, C, H, W], float64, in [-1, 1] but for overshoot.
        """
        ...
