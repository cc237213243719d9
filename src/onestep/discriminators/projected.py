"""The projected discriminator: trained heads on the frozen features of other networks (arXiv:2111.01007)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from onestep.discriminators import Compiler, ExecutionView, wrap_for_execution
from onestep.discriminators._backbones import Backbone, TimmTaps, fold_batch_norms, freeze, probe_batch_norms
from onestep.discriminators._heads import MultiScaleHeads, logits_of
from onestep.discriminators._projection import CrossScaleMixing, TokenReadout, mixing_channels

__all__ = ["Projected"]

_EMBEDDING_WIDTH = 64  # of random class tables


class Projected(nn.Module):
    """Frozen backbones, a fixed random mixing of their taps, and trained heads: one discriminator per backbone.

    `parameters()` are the heads' ones; frozen tensors are buffers. Gradients reach the images. In training mode every
    forward changes the heads' buffers (batch statistics, vectors of the spectral norm), also in the generator's phase;
    the frozen parts are always in evaluation mode.

    State dict, for each backbone `b`: `pretrained.{b}.network.*`, the frozen network under its own names (a batch
    norm that was folded into the convolution before it is missing, and that convolution has a `bias`);
    `readouts.{b}.*`, for a vision transformer, see `TokenReadout`; `scratch.{b}.*`, see `CrossScaleMixing`;
    `discriminators.{b}.mini_discs.{i}.*`, the heads of maps 0..3. The names under `discriminators` and below
    `scratch.{b}` are the reference's. With a projection per rank, `readouts` and `scratch` are not in the state dict:
    they follow from seed and rank, and ranks must not exchange them.

    Attributes:
        splits: Number of logits for each backbone, in the order of the logits.
        memory_format: Memory layout of the frozen part.
    """

    def __init__(
        self,
        *,
        backbones: Mapping[str, Backbone],
        channels: int,
        resolution: int,
        batch_norm: Literal["pretrained", "probed"] = "pretrained",
        fold_batch_norm: bool = True,
        projection: Literal["shared", "per_rank"] = "shared",
        classes: int = 0,
        embedding: Tensor | None = None,
        seed: int,
        rank: int = 0,
    ) -> None:
        """Draw the mixing and the heads.

        Args:
            backbones: The frozen networks by name, as `build_backbone` returns them.
            channels: Width of mixing and heads at the finest size (64 in the paper).
            resolution: Size to which images are resized before the backbones (224 in the paper).
            batch_norm: Statistics of the backbones' batch norms: `pretrained`, as in their files; `probed`, as in the
                reference (see `probe_batch_norms`).
            fold_batch_norm: Whether batch norms of timm's networks are folded into the convolutions before them: less
                computation, and results that differ by rounding.
            projection: The fixed random mixing and readout: `shared`, equal on all ranks; or `per_rank`, different on
                each, as in the reference, where ranks share only the heads.
            classes: Number of classes; 0 for unconditional heads.
            embedding: Initial class tables [at least `classes`, E], in the order of the classes; the reference takes
                ImageNet's for every dataset. Default: random, of width 64.
            seed: Seed of mixing and heads; with `rank` for a projection per rank.
            rank: Rank of this process.

        Raises:
            ValueError: The parts do not fit each other.
        """
        super().__init__()
        if not backbones:
            raise ValueError("backbones: got none, expected at least one")
        for name, each in backbones.items():
            if each.image_size not in (None, resolution):
                raise ValueError(f"resolution: got {resolution}, expected {each.image_size} for the backbone {name}")
        if embedding is not None and len(embedding) < classes:
            raise ValueError(f"class_embeddings: got {len(embedding)} rows, expected at least {classes}, one per class")
        self.resolution, self.classes = resolution, classes
        # Heads are built for the map sizes at the next power of two (256 for images of 224).
        nominal = 1 << (resolution - 1).bit_length()
        resolutions = {name: _mixed_sizes(each.nominal_strides, resolution=nominal) for name, each in backbones.items()}
        self.splits = tuple(
            logits_of(_mixed_sizes(each.strides, resolution=resolution), resolutions=resolutions[name])
            for name, each in backbones.items()
        )
        self.pretrained = nn.ModuleDict(backbones)
        for each in backbones.values():
            if batch_norm == "probed":
                probe_batch_norms(each.network, channels=each.channels)
            if fold_batch_norm and isinstance(each.network, TimmTaps):
                fold_batch_norms(each.network)
        # Channels-last makes the frozen part up to twice as fast, on CPUs too.
        self.memory_format = torch.channels_last
        is_shared = projection == "shared"
        with _seeded(seed):
            self.readouts, self.scratch = _projections(backbones, channels=channels, persistent=is_shared)
            if classes:
                embedding = torch.randn(classes, _EMBEDDING_WIDTH) if embedding is None else embedding[:classes]
            self.discriminators = nn.ModuleDict(
                {
                    name: MultiScaleHeads(
                        in_channels=mixing_channels(channels, levels=len(each.tap_channels))[1],
                        resolutions=resolutions[name],
                        channels=channels,
                        embedding=embedding if classes else None,
                    )
                    for name, each in backbones.items()
                }
            )
        # After the heads, which must be equal on all ranks. Rank 0 has the same weights with either projection.
        if not is_shared and rank:
            with _seeded(seed + rank):
                self.readouts, self.scratch = _projections(backbones, channels=channels, persistent=False)

    def forward(self, images: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return logits [B, N] of images [B, C, H, W] in [-1, 1]; `condition` is one-hot [B, K]; high means real."""
        return self.heads(self.frozen_features(images), condition)

    def frozen_features(self, images: Tensor) -> tuple[tuple[Tensor, ...], ...]:
        """Return the mixed maps [B, C_i, H_i, W_i], four per backbone; rows do not depend on each other."""
        images = images.to(memory_format=self.memory_format)
        return tuple(self.scratch[name](self.taps(name, images)) for name in self.pretrained)

    def taps(self, name: str, images: Tensor) -> tuple[Tensor, ...]:
        """Return the taps of a backbone, from fine to coarse, each half the size of the one before."""
        taps = self.pretrained[name](images, size=self.resolution)
        return self.readouts[name](taps) if name in self.readouts else taps

    def heads(self, features: Sequence[Sequence[Tensor]], condition: Tensor | None = None) -> Tensor:
        """Return logits [B, N] of frozen features; in training mode rows interact in the batch norms.

        Raises:
            ValueError: The heads are conditional and there is no condition.
        """
        if self.classes and condition is None:
            raise ValueError(f"condition: got none, expected one-hot [B, {self.classes}] for this discriminator")
        heads = self.discriminators.values()
        return torch.cat([head(maps, condition) for head, maps in zip(heads, features, strict=True)], dim=1)

    def execution_view(
        self, *, bfloat16: bool, channels_last: bool, compiled: Compiler, is_constant: bool = True
    ) -> ExecutionView:
        """Return the discriminator as first-order phases call it: see `onestep.networks.execution_view`.

        `channels_last` and `is_constant` have no effect: the frozen part is always constant and in `memory_format`.
        """
        return wrap_for_execution(self, bfloat16=bfloat16, compiled=compiled)

    def train(self, mode: bool = True) -> Projected:
        """Set the heads to training (or evaluation) mode; the frozen parts stay in evaluation mode."""
        super().train(mode)
        for frozen in (self.pretrained, self.readouts, self.scratch):
            frozen.eval()
        return self


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed torch's generator inside the block, and restore its state afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _projections(
    backbones: Mapping[str, Backbone], *, channels: int, persistent: bool
) -> tuple[nn.ModuleDict, nn.ModuleDict]:
    """Draw the fixed layers between taps and heads: readouts of transformers, then the mixing of each backbone."""
    readouts, mixings = nn.ModuleDict(), nn.ModuleDict()
    for name, backbone in backbones.items():
        if backbone.token_width is not None:
            readout = TokenReadout(width=backbone.token_width, channels=backbone.tap_channels)
            readouts[name] = freeze(readout, persistent=persistent)
    for name, backbone in backbones.items():
        ccm, out = mixing_channels(channels, levels=len(backbone.tap_channels))
        mixing = CrossScaleMixing(tap_channels=backbone.tap_channels, ccm_channels=ccm, out_channels=out)
        mixings[name] = freeze(mixing, persistent=persistent)
    return readouts, mixings


def _mixed_sizes(strides: Sequence[float], *, resolution: int) -> list[int]:
    """Return the sizes of the mixed maps: twice those of the taps."""
    return [2 * int(resolution / stride) for stride in strides]
