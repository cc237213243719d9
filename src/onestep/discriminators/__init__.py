"""The contract of a discriminator, images to logits, and its builder.

Legend: B images, C H W an image, K classes, N logits a row. `images` are float32 in [-1, 1]. A discriminator is a part
that nothing trains, images to feature maps, and a part that is trained, feature maps to logits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from onestep import plugins
from onestep.checkpoints.class_embeddings import read_class_embeddings
from onestep.discriminators._backbones import Backbone, load_backbone
from onestep.discriminators._timm_backbones import load_timm_backbone


class Discriminator(Protocol):
    """What the files of this folder hold, as `nn.Module`s whose `parameters()` are what is trained.

    Attributes:
        splits: N as a sum: how many neighbouring logits belong to each independent critic. A loss takes the mean
            within a critic and the sum over critics.
    """

    splits: tuple[int, ...]

    def forward(self, images: Tensor, labels: Tensor | None) -> Tensor:
        """Return logits [B, N] of images [B, C, H, W] under labels, one-hot [B, K] or None; large means real.

        The same as `judge(features(images), labels)`.
        """
        ...

    def features(self, images: Tensor) -> tuple[tuple[Tensor, ...], ...]:
        """Return feature maps [B, ...] of images [B, C, H, W], a tuple for each critic.

        Nothing here is trained, no call changes what later calls return, and rows do not see each other.
        """
        ...

    def judge(self, features: Sequence[Sequence[Tensor]], labels: Tensor | None) -> Tensor:
        """Return logits [B, N] of what `features` returned; all that is trained is here, and rows may meet."""
        ...


def build_discriminator(
    config: dict[str, Any],
    *,
    backbones: Mapping[str, Path],
    timm: Mapping[str, str] | None = None,
    class_embeddings: Path | None = None,
    classes: int,
    seed: int,
    rank: int = 0,
) -> nn.Module:
    """Build the discriminator a config describes: `{name: projected, backbones: [digits], channels, resolution}`.

    Args:
        config: The choice and its options; `backbones` and `class_embeddings` name what the files below hold.
        backbones: The file of each backbone, by name.
        timm: What timm calls those of the backbones that are its networks, by name; others are our classifiers.
        class_embeddings: The table with which the class tables start, published or ours; None for random ones.
        classes: Number of classes it judges by; 0 for an unconditional run.
        seed: Of all that is drawn.
        rank: Of this process.

    Raises:
        ValueError: A backbone has no file, or a file is damaged.
    """
    missing = [name for name in config["backbones"] if name not in backbones]
    if missing:
        raise ValueError(f"no backbone called {missing[0]!r}; there are: {', '.join(sorted(backbones)) or 'none'}")
    networks = {name: build_backbone(backbones[name], timm=(timm or {}).get(name)) for name in config["backbones"]}
    embedding = None if class_embeddings is None else read_class_embeddings(class_embeddings)
    return join_discriminator(config, networks=networks, embedding=embedding, classes=classes, seed=seed, rank=rank)


def join_discriminator(
    config: Mapping[str, Any],
    *,
    networks: Mapping[str, Backbone],
    embedding: Tensor | None,
    classes: int,
    seed: int,
    rank: int = 0,
) -> nn.Module:
    """Build the discriminator a config describes from what it looks through.

    Args:
        config: See `build_discriminator`; likewise the others.
        networks: The backbones by name.
        embedding: Rows with which the class tables start; None for random ones.
        classes: See there.
        seed: See there.
        rank: See there.
    """
    options = {key: value for key, value in config.items() if key not in ("name", "backbones", "class_embeddings")}
    if embedding is not None:
        options["embedding"] = embedding
    component = plugins.load("discriminators", config["name"])
    return component(backbones=networks, classes=classes, seed=seed, rank=rank, **options)


def build_backbone(path: Path, *, timm: str | None) -> Backbone:
    """Build the frozen network of a file: timm's of that name, or, where there is none, a classifier's snapshot.

    Raises:
        ValueError: The file does not hold it.
    """
    return load_backbone(path) if timm is None else load_timm_backbone(path, name=timm)
