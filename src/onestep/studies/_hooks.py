"""Hooks on the blocks of a denoiser, along a deterministic trajectory or on noised images.

The file of a network names its blocks and the last layer of each (`block_layers`; see `onestep.networks`). Each
observation goes to a function at once, and nothing of a batch is kept here.
Legend: B images of a batch, C H W a feature map, T noise levels.
"""

from __future__ import annotations

import contextlib
import fnmatch
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onestep.arithmetic import default_device
from onestep.checkpoints.snapshot import read_snapshot
from onestep.data import to_images
from onestep.data.image_zip import ImageZip
from onestep.networks import Preconditioned, build_denoiser, load_denoiser
from onestep.sampling import PerSeedRandom, sampling
from onestep.sampling.heun import Heun

Kind = Literal["input", "layer", "output", "denoised"]
See = Callable[[int, Kind, int, Tensor], None]
"""Called with the step, the kind of the observation, the index of the block and the tensor, in running order.

`input` is c_in x as the network gets it, `denoised` is D(x; sigma); their index is -1. The tensors are those of the
network, not copies.
"""


@dataclass(frozen=True, kw_only=True)
class Block:
    """A block of a network.

    Attributes:
        name: Of its module in the denoiser.
        layer: Of its last layer in the denoiser.
        part: Such as `encoder`, as the network's file names it.
        resolution: H and W of its output, of tokens the side of their square.
    """

    name: str
    layer: str
    part: str
    resolution: int = 0

    @property
    def label(self) -> str:
        """The name without the prefix of the denoiser."""
        return self.name.removeprefix("model.")


def load(path: Path) -> Preconditioned:
    """Load a denoiser onto the device of this process, in evaluation mode."""
    return load_denoiser(path).to(default_device())


def untrained(path: Path, *, seed: int) -> Preconditioned:
    """Return a network of the shape of the one in a file, with fresh weights drawn from `seed`.

    A weight that is initialised with zeros is drawn from N(0, 1 / fan-in), because its layer would be silent.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build_denoiser(read_snapshot(path).config)
        for parameter in network.parameters():
            if parameter.ndim > 1 and not parameter.any():
                nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return network.to(default_device()).eval().requires_grad_(False)


def blocks_of(network: Preconditioned, *, source: Path, like: Sequence[Block] = ()) -> tuple[Block, ...]:
    """Return the blocks of the network of a file in running order.

    ValueError: The network's file names no blocks, a pattern of it matches none, a block does not run once, or they are
    other blocks than those of `like`.
    """
    try:
        found = _blocks_of(network)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    if like and [block.name for block in found] != [block.name for block in like]:
        raise ValueError(f"{source}: got other blocks than those of the teacher, expected the same. Fix: correct arms")
    return found


def _blocks_of(network: Preconditioned) -> tuple[Block, ...]:
    kind = type(network.model).__name__
    named: Mapping[str, tuple[str, str]] | None = getattr(network.model, "block_layers", None)
    if not named:
        fix = "Fix: name the blocks in the file of the network (docs/extend.md)"
        raise ValueError(f"network: got {kind}, which has no block_layers, expected the names of its blocks. {fix}")
    modules = dict(network.named_modules())
    found: dict[str, Block] = {}
    for part, (pattern, layer) in named.items():
        names = [each for each in fnmatch.filter(modules, pattern) if f"{each}.{layer}" in modules]
        if not names:
            raise ValueError(f"network: got {kind}.block_layers[{part!r}] = {pattern!r}, {layer!r}, which match none")
        found |= {each: Block(name=each, layer=f"{each}.{layer}", part=part) for each in names}
    return _in_running_order(network, list(found.values()))


def _in_running_order(network: Preconditioned, blocks: Sequence[Block]) -> tuple[Block, ...]:
    ran: list[Block] = []

    def see(step: int, kind: Kind, index: int, value: Tensor) -> None:
        if kind == "output":
            ran.append(replace(blocks[index], resolution=as_map(value).shape[-1]))

    noise, condition = _start(network, PerSeedRandom([0]))
    with sampling(network, Heun(precision="float32")):
        observed(network, blocks, noise, 1.0, condition, see=functools.partial(see, 0))
    if sorted(each.name for each in ran) != sorted(each.name for each in blocks):
        raise ValueError(f"network: got blocks of {type(network.model).__name__} that do not run once, expected such")
    return tuple(ran)


def as_map(value: Tensor) -> Tensor:
    """Return the output of a block as [B, C, H, W]; tokens [B, T, C] are the pixels of a square, row by row."""
    if value.ndim == 4:
        return value
    side = math.isqrt(value.shape[1]) if value.ndim == 3 else 0
    if value.ndim != 3 or side**2 != value.shape[1]:
        raise ValueError(
            f"network: got a block's output {list(value.shape)}, expected [B, C, H, W] or a square of tokens"
        )
    return value.transpose(1, 2).unflatten(2, (side, side))


def observed(
    network: Preconditioned,
    blocks: Sequence[Block],
    x: Tensor,
    sigma: Tensor | float,
    condition: Tensor | None,
    *,
    see: Callable[[Kind, int, Tensor], None],
) -> Tensor:
    """Return D(x; sigma) [B, C, H, W], and show input, layers, outputs and the result to `see`."""
    with contextlib.ExitStack() as hooks:
        hooks.callback(network.model.register_forward_pre_hook(lambda _, inputs: see("input", -1, inputs[0])).remove)
        for index, block in enumerate(blocks):
            shown: dict[Kind, str] = {"layer": block.layer, "output": block.name}
            for kind, name in shown.items():
                hook = functools.partial(_show, see, kind, index)
                hooks.callback(network.get_submodule(name).register_forward_hook(hook).remove)
        denoised = network(x, sigma, condition)
    see("denoised", -1, denoised)
    return denoised


def _show(
    see: Callable[[Any, int, Tensor], None], kind: Kind, index: int, _: nn.Module, __: Any, value: Tensor
) -> None:
    see(kind, index, value)


class _Watched:
    """A denoiser whose first evaluation of each of Heun's steps is observed."""

    def __init__(self, network: Preconditioned, blocks: Sequence[Block], see: See) -> None:
        self._network, self._blocks, self._see, self._calls = network, blocks, see, 0
        self.sigma_min, self.sigma_max = network.sigma_min, network.sigma_max
        self.levels: list[float] = []

    def __call__(self, x: Tensor, sigma: Tensor, condition: Tensor | None) -> Tensor:
        step, is_second = divmod(self._calls, 2)
        self._calls += 1
        if is_second:
            return self._network(x, sigma, condition)
        self.levels.append(float(sigma[0]))
        return observed(self._network, self._blocks, x, sigma, condition, see=functools.partial(self._see, step))


def trajectory(
    network: Preconditioned, blocks: Sequence[Block], *, sampler: Heun, seeds: Sequence[int], batch: int, see: See
) -> list[float]:
    """Follow the sampler's trajectory from the noise of each seed, and return the noise levels [T] of its steps.

    Each step is observed at its first evaluation. The class of a conditional network is drawn from the seed.
    """
    levels: list[float] = []
    for random in _streams(seeds, batch=batch):
        noise, condition = _start(network, random)
        watched = _Watched(network, blocks, see)
        with sampling(network, sampler):
            sampler(watched, noise, condition, random=random)
        levels = watched.levels
    return levels


def at_levels(
    network: Preconditioned,
    blocks: Sequence[Block],
    *,
    levels: Sequence[float],
    seeds: Sequence[int],
    batch: int,
    see: See,
    images: Tensor | None = None,
    condition: Tensor | None = None,
) -> None:
    """Observe D(images + sigma noise; sigma) at each level, with the noise of each seed; `images` default to zero.

    `condition` has a row for each seed; without it, the class of a conditional network is drawn from the seed.
    """
    done = 0
    for random in _streams(seeds, batch=batch):
        noise, drawn = _start(network, random)
        rows = slice(done, done := done + len(noise))
        clean = 0.0 if images is None else images[rows].to(noise.device, torch.float64)
        given = drawn if condition is None else condition[rows].to(noise.device)
        with sampling(network, Heun(precision="float32")):
            for step, level in enumerate(levels):
                sigma = torch.full((1,), level, dtype=torch.float64, device=noise.device).expand(len(noise))
                x = clean + level * noise.to(torch.float64)
                observed(network, blocks, x, sigma, given, see=functools.partial(see, step))


def _streams(seeds: Sequence[int], *, batch: int) -> Iterator[PerSeedRandom]:
    return (PerSeedRandom(seeds[start : start + batch]) for start in range(0, len(seeds), batch))


def _start(network: Preconditioned, random: PerSeedRandom) -> tuple[Tensor, Tensor | None]:
    """Return noise and condition of each seed, as `onestep.sampling.generate` draws them."""
    device, size = next(network.parameters()).device, network.img_resolution
    noise = random.normal((network.img_channels, size, size)).to(device)
    if not network.label_dim:
        return noise, None
    return noise, F.one_hot(random.integers(network.label_dim), network.label_dim).to(device, torch.float32)


def evenly(count: int, *, of: int) -> list[int]:
    """Return `count` indices that are evenly spaced in a dataset of so many images."""
    return [index * of // count for index in range(count)]


def real_images(archive: Path, network: Preconditioned, *, count: int) -> tuple[Tensor, Tensor | None]:
    """Return images of a dataset, evenly spaced in its order, and their classes as a condition of the network.

    No condition for an unconditional network, or one of other classes. ValueError: The dataset has fewer images, or
    those of another shape.
    """
    data = ImageZip(source=archive)
    got, expected = (data.channels, data.resolution), (network.img_channels, network.img_resolution)
    if got != expected:
        raise ValueError(
            f"{archive}: got images of {got} channels and pixels, expected {expected}, those of the network"
        )
    if count > len(data):
        raise ValueError(f"seeds: got {count:,}, expected at most {len(data):,}, the images of {archive}")
    chosen = [data[index] for index in evenly(count, of=len(data))]
    images = to_images(torch.stack([torch.as_tensor(pixels) for pixels, _ in chosen]))
    if not network.label_dim or network.label_dim != data.classes:
        return images, None
    return images, F.one_hot(torch.tensor([label for _, label in chosen]), data.classes).float()
