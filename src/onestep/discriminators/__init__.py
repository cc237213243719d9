"""Contract of discriminators, their builder, and their mixed-precision, compiled form.

Legend: B images, C H W an image, K classes, N logits per image. `images` are float32 in [-1, 1]; `condition` is a
one-hot class vector [B, K], or None. A discriminator has a frozen part, from images to feature maps, and trained heads,
from feature maps to logits.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from onestep import components
from onestep.arithmetic import half_products
from onestep.discriminators._backbones import Backbone, build_backbone

__all__ = [
    "Backbone",
    "Discriminator",
    "ExecutionView",
    "build_backbone",
    "build_discriminator",
    "seeded",
    "wrap_for_execution",
]

FeatureMaps = tuple[tuple[Tensor, ...], ...]
Compiler = Callable[[Callable[..., Any]], Callable[..., Any]]


class Discriminator(Protocol):
    """A class of this folder: an `nn.Module` whose `parameters()` are the trained ones.

    Its constructor gets those of `backbones`, `classes`, `embedding`, `seed`, `rank`, `img_resolution` and
    `img_channels` that it has; see `build_discriminator`. One without `classes` is refused in a conditional run. Two
    optional class attributes are literals, which a login node without torch reads, too: `image_sizes`, the sizes that
    it takes, and `grouped_by`, the option of which the images of a call are a multiple, or fewer.

    One on inner maps of denoisers has `map_shapes` in its constructor, channels and size of each map, and `teacher`,
    the run's frozen teacher, or None for an objective that has maps of its own (`Fresh.maps_of` of objectives); and a
    method `chosen`, from all maps of an encoder to those that `heads` takes. One of noisy images has a method
    `prepared`, from images [n B, C, H, W], `random` and `condition` of a batch to what `frozen_features` takes. One
    whose frozen networks see pictures, and so decoded latents, has the class attribute `sees_pictures`, True.

    Attributes:
        splits: N as a sum: the numbers of neighbouring logits of the independent discriminators. A loss is the mean
            within each and the sum over them.
    """

    splits: tuple[int, ...]

    def modules(self) -> Iterator[nn.Module]:
        """Iterate over all submodules."""
        ...

    def __call__(self, images: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return logits [B, N] of images [B, C, H, W], `heads(frozen_features(images), condition)`; high means real."""
        ...

    def frozen_features(self, images: Tensor) -> FeatureMaps:
        """Return feature maps [B, ...] of images [B, C, H, W], a tuple for each independent discriminator.

        Nothing in it is trained, it has no state, and rows do not depend on each other.
        """
        ...

    def heads(self, features: Sequence[Sequence[Tensor]], condition: Tensor | None = None) -> Tensor:
        """Return logits [B, N] of frozen features; all trained parameters are used here, and rows may interact."""
        ...


@dataclass(frozen=True, kw_only=True)
class ExecutionView:
    """A `Discriminator` made of functions that compute with the weights of another one."""

    splits: tuple[int, ...]
    frozen_features: Callable[[Tensor], FeatureMaps]
    heads: Callable[[Sequence[Sequence[Tensor]], Tensor | None], Tensor]
    prepared: Callable[..., Tensor] | None = None
    chosen: Callable[[Sequence[Tensor]], FeatureMaps] | None = None
    sees_pictures: bool = False

    def __call__(self, images: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return logits [B, N] of images [B, C, H, W]."""
        return self.heads(self.frozen_features(images), condition)


def wrap_for_execution(discriminator: Discriminator, *, bfloat16: bool, compiled: Compiler) -> ExecutionView:
    """Return a discriminator, whose frozen part is final, as first-order phases call it, with the same weights.

    With `bfloat16`, convolutions and matrix products run in it by torch's autocast; what autocast keeps in float32, the
    spectral norm and the logits stay float32. Heads are compiled where the discriminator has them as `score`, a
    function of features, condition and `vectors()` that returns logits and the vectors for `keep_vectors`: a compiled
    call that changed such vectors in place would save them for its backward pass, which runs after the next call.
    """

    def half(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def cast(maps: Any, *others: Any) -> Any:
            with half_products(_first(maps).device):
                return function(maps, *others)

        return cast if bfloat16 else function

    frozen = with_cast_frozen_weights(discriminator) if bfloat16 else discriminator
    score = getattr(discriminator, "score", None)
    heads = half(discriminator.heads) if score is None else _with_vectors(discriminator, compiled(half(score)))
    return ExecutionView(
        splits=discriminator.splits,
        frozen_features=compiled(half(frozen.frozen_features)),
        heads=(lambda maps, condition: heads(maps, condition).float()) if bfloat16 else heads,
        prepared=getattr(discriminator, "prepared", None),
        chosen=getattr(discriminator, "chosen", None),
        sees_pictures=getattr(discriminator, "sees_pictures", False),
    )


def _with_vectors(discriminator: Any, score: Callable[..., Any]) -> Callable[..., Tensor]:
    """Return the heads whose vectors are the discriminator's."""

    def heads(maps: Sequence[Sequence[Tensor]], condition: Tensor | None = None) -> Tensor:
        logits, vectors = score(tuple(tuple(each) for each in maps), condition, discriminator.vectors())
        discriminator.keep_vectors(vectors)
        return logits

    return heads


def _first(maps: Any) -> Tensor:
    return maps if isinstance(maps, Tensor) else _first(maps[0])


def with_cast_frozen_weights(discriminator: Discriminator) -> Discriminator:
    """Return a copy whose frozen convolutions and matrices are bfloat16; autocast would cast them at each forward."""
    twin = copy.deepcopy(discriminator)
    for part in twin.modules():
        if isinstance(part, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            for name, value in list(part.named_buffers(recurse=False)):
                setattr(part, name, value.to(torch.bfloat16))
    return twin


def build_discriminator(
    config: Mapping[str, Any],
    *,
    backbones: Mapping[str, Backbone],
    embedding: Tensor | None,
    classes: int,
    seed: int,
    rank: int = 0,
    resolution: int | None = None,
    channels: int | None = None,
    teacher: nn.Module | None = None,
    map_shapes: Sequence[tuple[int, int]] | None = None,
) -> nn.Module:
    """Build a discriminator from its config, `{name: projected, channels: 64, resolution: 224}`, and its backbones.

    The keys `backbones` and `class_embeddings` of the config, names of files, are not used. `embedding` is the initial
    class table [at least K, E], None for a random one; `classes` is K, 0 for an unconditional discriminator; `seed` is
    that of all random weights; `resolution` and `channels` are H and W, and C, of the images, for a discriminator built
    for one size; `teacher` and `map_shapes` are for one on inner maps. A class gets those that its constructor has.

    Raises:
        ValueError: There is no such discriminator, its parts do not fit each other, or it has no classes
            for those of the run.
    """
    block = {key: value for key, value in config.items() if key not in ("backbones", "class_embeddings")}
    taken = components.describe("discriminators", block["name"]).parameters
    if classes and "classes" not in taken:
        raise ValueError(f"discriminator: got {block['name']}, which has no classes, in a run with classes")
    if embedding is not None and "embedding" not in taken:
        raise ValueError(f"class_embeddings: got a table, expected none: {block['name']} begins with random classes")
    supplied = {"backbones": backbones, "classes": classes, "seed": seed, "rank": rank}
    supplied |= {"img_resolution": resolution, "img_channels": channels, "teacher": teacher, "map_shapes": map_shapes}
    supplied |= {} if embedding is None else {"embedding": embedding}
    return components.build("discriminators", block, **{key: value for key, value in supplied.items() if key in taken})


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's generator inside the block, and restore its state afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
