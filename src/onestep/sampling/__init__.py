"""The contract of a sampler, and image generation: an image depends on its seed only, not on the batch or other seeds.

The files of this folder without an underscore are samplers: frozen dataclasses that implement `Sampler`.
Legend: B images, C H W an image, K classes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from onestep.arithmetic import Precision, computing, in_force
from onestep.autoencoders import Codec
from onestep.autoencoders.identity import Identity
from onestep.chain import sampler_misfit
from onestep.networks import Preconditioned

Denoiser = Callable[..., Tensor]
"""Called as `generator(x [B, C, H, W], sigma [B], condition)`; see `onestep.networks`."""

# A convolution may round differently for another number of images. Every call of the network receives this many, the
# last seed repeated where necessary, so that an image has the same bytes in every batch.
ROWS = 64


class PerSeedRandom:
    """One generator per seed (modulo 2^32); each draw returns the next numbers of every seed.

    The order of the reference is: the noise, the class, the noise that a sampler adds.
    """

    # Differs from the reference: its generators are on the sampling device; these are always on the CPU, so that a
    # seed gives the same image on every machine.
    def __init__(self, seeds: Sequence[int]) -> None:
        self._streams = [torch.Generator().manual_seed(int(seed) % 2**32) for seed in seeds]

    def normal(self, shape: Sequence[int], *, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return standard normal numbers [B, *shape] on the CPU; a float64 draw differs from a float32 draw."""
        numbers = torch.empty(len(self._streams), *shape, dtype=dtype)
        for row, stream in zip(numbers, self._streams, strict=True):
            row.normal_(generator=stream)
        return numbers

    def integers(self, high: int) -> Tensor:
        """Return one integer in [0, high) per seed, int64 [B] on the CPU."""
        draws = [torch.randint(high, (), generator=stream) for stream in self._streams]
        return torch.stack(draws) if draws else torch.empty(0, dtype=torch.int64)


def per_seed_noise(seeds: Sequence[int], shape: tuple[int, ...]) -> Tensor:
    """Return the noise of each seed: standard normal, float32 [B, *shape], on the CPU."""
    return PerSeedRandom(seeds).normal(shape)


class Sampler(Protocol):
    """The algorithm that turns noise into images with a denoiser.

    Optional attributes, which `generate` reads and the call does not:
        precision: `float32`, `tf32` or `bfloat16`, in which the network computes on CUDA devices; elsewhere it is
            float32. None, the default, is float32, or bfloat16 for a network that its file marks as `use_fp16`.
        samples_half: False if None is float32 for those networks, too.
        guide: What names the weights of a second network, as `onestep sample` reads it; None for none. With it comes
            `with_guide(network)`, which returns a sampler that has this network.
    """

    @property
    def nfe(self) -> int:
        """NFE: calls of the network per image."""
        ...

    def __call__(
        self, generator: Denoiser, noise: Tensor, condition: Tensor | None, *, random: PerSeedRandom | None = None
    ) -> Tensor:
        """Return images [B, C, H, W], float64, in [-1, 1] up to overshoot.

        `noise` is standard normal float32 [B, C, H, W] on the device of the generator; `condition` has one row per
        image, today one-hot classes [B, K]; `random` drew the noise, and draws more for a sampler that adds noise.
        """
        ...


class Samples(NamedTuple):
    """Images in the order of their seeds, uint8 [B, H, W, C], with classes, int64 [B], if there are any; on the CPU."""

    pixels: Tensor
    labels: Tensor | None


def generate(
    generator: Preconditioned, sampler: Sampler, *, seeds: Sequence[int], batch: int, codec: Codec | None = None
) -> Iterator[Samples]:
    """Generate one image per seed, in items of `batch` images, best a multiple of 64.

    The bytes depend on the seed only. On a CPU this holds for one machine and number of threads; on a GPU for the
    algorithms that its libraries choose. The arithmetic is that of the sampler, whatever this process had set for
    TF32 and autocast. The class of a conditional generator is drawn after the noise. A generator in training mode, a
    `batch` below 1, or images that are not finite, are a ValueError.
    """
    if generator.training:
        raise ValueError("generator: got training mode, where dropout changes images. Fix: call generator.eval()")
    if batch < 1:
        raise ValueError(f"batch: got {batch}, expected at least 1 image")
    for start in range(0, len(seeds), batch):
        group = seeds[start : start + batch]
        calls = [group[first : first + ROWS] for first in range(0, len(group), ROWS)]
        pieces = [_one_call(generator, sampler, call, codec=codec or Identity()) for call in calls]
        labels = [piece.labels for piece in pieces if piece.labels is not None]
        yield Samples(torch.cat([piece.pixels for piece in pieces]), torch.cat(labels) if labels else None)


def requested_precision(generator: Preconditioned, sampler: Sampler) -> Precision:
    """Return the precision that a sampler requests of a generator on a CUDA device; see `Sampler`."""
    asked: Precision | None = getattr(sampler, "precision", None)
    if asked is not None:
        return asked
    return "bfloat16" if getattr(generator, "use_fp16", False) and getattr(sampler, "samples_half", True) else "float32"


def sampled_in(generator: Preconditioned, sampler: Sampler) -> Precision:
    """Return the precision in which a generator computes for a sampler on its device."""
    return in_force(requested_precision(generator, sampler), device=next(generator.parameters()).device)


def dropped(generator: Preconditioned, sampler: Sampler) -> str | None:
    """Return a line for the user where a sampler requests what the device does not have; None if it has it."""
    asked, found = getattr(sampler, "precision", None), sampled_in(generator, sampler)
    if asked in (None, found):
        return None
    return f"precision: {asked} is for CUDA devices, so the images are computed in {found}"


@contextlib.contextmanager
def sampling(generator: Preconditioned, sampler: Sampler) -> Iterator[None]:
    """Compute as a sampler requests inside the block, without gradients; `generate` does so itself.

    ValueError: The network is a multi-step generator, and the sampler not a chain of as many steps.
    """
    _expect_fit(generator, sampler)
    precision, former = sampled_in(generator, sampler), getattr(generator, "image_type", None)
    device = next(generator.parameters()).device
    # bfloat16 is the type of the image path, as in training; what stays float32 beside it has no TF32.
    with computing("tf32" if precision == "tf32" else "float32", device=device):
        generator.image_type = torch.bfloat16 if precision == "bfloat16" else torch.float32
        try:
            yield
        finally:
            generator.image_type = former


def rank_batches(seeds: Sequence[int], *, batch: int, world_size: int, rank: int) -> list[Sequence[int]]:
    """Return the seeds that one rank generates, in batches of at most `batch`.

    The seeds are split into the smallest number of near-equal batches that is a multiple of the world size (the first
    ones are longer by one), which are assigned to the ranks in turn. Empty batches are omitted.
    """
    count = -(-len(seeds) // (batch * world_size)) * world_size
    size, longer = divmod(len(seeds), count or 1)
    starts = [index * size + min(index, longer) for index in range(count + 1)]
    cuts = [seeds[start:stop] for start, stop in pairwise(starts)]
    return [cut for cut in cuts[rank::world_size] if len(cut)]


def _one_call(generator: Preconditioned, sampler: Sampler, seeds: Sequence[int], *, codec: Codec) -> Samples:
    random = PerSeedRandom([*seeds, *[seeds[-1]] * (ROWS - len(seeds))])
    device = next(generator.parameters()).device
    size = generator.img_resolution
    noise = random.normal((generator.img_channels, size, size)).to(device)
    classes = random.integers(generator.label_dim) if generator.label_dim else None
    condition = None if classes is None else F.one_hot(classes, generator.label_dim).to(device, torch.float32)
    with sampling(generator, sampler):
        images = sampler(generator, noise, condition, random=random)[: len(seeds)]
    _expect_finite(images, seeds)
    pixels = codec.decode(images)
    return Samples(pixels.permute(0, 2, 3, 1).contiguous().cpu(), None if classes is None else classes[: len(seeds)])


def _expect_fit(generator: Preconditioned, sampler: Sampler) -> None:
    own = getattr(generator, "sampler", None)
    name = type(sampler).__module__.removeprefix(f"{__name__}.")
    block = {"name": name, "steps": getattr(sampler, "steps", None), "sigma": getattr(sampler, "sigma", None)}
    if own is not None and (wrong := sampler_misfit(block, steps=own.get("steps", 1), sigma=own.get("sigma"))):
        raise ValueError(f"sampler: {wrong}")


def _expect_finite(images: Tensor, seeds: Sequence[int]) -> None:
    """Raise ValueError for NaN and infinities, of which the cast to uint8 would make black pixels."""
    odd = ~torch.isfinite(images).flatten(1).all(dim=1).cpu()
    if odd.any():
        first = seeds[int(odd.nonzero()[0])]
        raise ValueError(
            f"images: got {int(odd.sum())} of {len(seeds)} with values that are NaN or infinite, the first of seed "
            f"{first}, expected finite ones. Fix: check the sampler's noise levels, or choose another snapshot"
        )
