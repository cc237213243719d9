"""From seeds to pixels, in batches that leave no trace in them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onestep.data import to_pixels
from onestep.sampling._seeds import PerSeedRandom

if TYPE_CHECKING:
    from onestep.sampling import Sampler

# A convolution may round otherwise when it is given another number of images. So every call of the network is given
# this many, the last ones repeated where seeds run out: an image is the same bytes in whatever batch it is made.
ROWS = 64


class Samples(NamedTuple):
    """Generated images, in the order of their seeds.

    Attributes:
        pixels: uint8 [N, H, W, C], on the CPU.
        labels: Their classes, int64 [N], on the CPU; None from an unconditional generator.
    """

    pixels: Tensor
    labels: Tensor | None


def generate(generator: nn.Module, sampler: Sampler, *, seeds: Sequence[int], batch: int) -> Iterator[Samples]:
    """Generate one image a seed.

    The bytes depend on the seed alone: not on `batch`, on the other seeds or on their order. On a CPU this holds for
    a given machine and number of threads; on a GPU for the algorithms that its libraries choose.

    Args:
        generator: A `onestep.networks.Denoiser` in evaluation mode, on the device to compute on.
        sampler: From noise to images.
        seeds: Integers; a conditional generator draws the class from the seed too, after the noise.
        batch: Images a yielded item; fewer than a multiple of 64 wastes work.

    Raises:
        ValueError: The generator is in training mode, or `batch` is not positive.
    """
    if generator.training:
        raise ValueError("the generator is in training mode, where dropout would change its images; call .eval() first")
    if batch < 1:
        raise ValueError(f"batch is at least 1 image, not {batch}")
    for group in _groups(seeds, batch):
        pieces = [_one_call(generator, sampler, piece) for piece in _groups(group, ROWS)]
        labels = None if pieces[0].labels is None else torch.cat([piece.labels for piece in pieces])
        yield Samples(torch.cat([piece.pixels for piece in pieces]), labels)


def rank_batches(seeds: Sequence[int], *, batch: int, world_size: int, rank: int) -> list[Sequence[int]]:
    """Return the seeds that process `rank` of `world_size` generates, in batches of at most `batch`.

    The seeds are cut into as many near-equal batches as fill every process equally often (the earlier ones are one
    longer), which are dealt out in turn. Empty ones, where seeds are fewer than processes, are left out.
    """
    count = -(-len(seeds) // (batch * world_size)) * world_size
    if count == 0:
        return []
    size, longer = divmod(len(seeds), count)
    starts = [index * size + min(index, longer) for index in range(count + 1)]
    cuts = [seeds[start:stop] for start, stop in zip(starts, starts[1:], strict=False)]
    return [cut for cut in cuts[rank::world_size] if len(cut)]


def _groups(seeds: Sequence[int], size: int) -> list[Sequence[int]]:
    return [seeds[start : start + size] for start in range(0, len(seeds), size)]


@torch.no_grad()
def _one_call(generator: nn.Module, sampler: Sampler, seeds: Sequence[int]) -> Samples:
    """Generate at most `ROWS` images, as if they were `ROWS`."""
    random = PerSeedRandom([*seeds, *[seeds[-1]] * (ROWS - len(seeds))])
    device = next(generator.parameters()).device
    size = generator.img_resolution
    noise = random.normal((generator.img_channels, size, size)).to(device)
    classes = random.integers(generator.label_dim) if generator.label_dim else None
    labels = None if classes is None else F.one_hot(classes, generator.label_dim).to(device, torch.float32)
    pixels = to_pixels(sampler(generator, noise, labels, random=random)[: len(seeds)])
    return Samples(pixels.permute(0, 2, 3, 1).contiguous().cpu(), None if classes is None else classes[: len(seeds)])
