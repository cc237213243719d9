"""The contract of a sampler, and image generation with one random stream per seed.

The files of this folder without an underscore are samplers: frozen dataclasses that implement `Sampler`.
"""

from __future__ import annotations

from onestep.sampling._generate import PerSeedRandom, Sampler, Samples, generate, per_seed_noise, rank_batches

__all__ = ["PerSeedRandom", "Sampler", "Samples", "generate", "per_seed_noise", "rank_batches"]
