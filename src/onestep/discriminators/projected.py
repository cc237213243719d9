"""The projected discriminator: trained heads on the frozen features of other networks (arXiv:2111.01007).

Legend: B images, C H W an image or a feature map. Taps are four inner feature maps of a backbone, from fine to coarse.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor, nn

from onestep.config.constraints import Constraint
from onestep.discriminators import Compiler, ExecutionView, seeded, wrap_for_execution
from onestep.discriminators._backbones import (
    Backbone,
    TimmTaps,
    check_sizes,
    fold_batch_norms,
    freeze,
    probe_batch_norms,
)
from onestep.discriminators._heads import (
    MultiScaleHeads,
    Vectors,
    divided_weights,
    keep_vectors,
    logits_of,
    spectral_convolutions,
    vectors_of,
)
from onestep.discriminators._resize import resized

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
    `discriminators.{b}.mini_discs.{i}.*`, the heads of maps 0..3, or of the last. The names under `discriminators` and
    below `scratch.{b}` are the reference's. With a projection per rank, `readouts` and `scratch` are not in the state
    dict: they follow from seed and rank, and ranks must not exchange them.

    Attributes:
        splits: Number of logits for each backbone, in the order of the logits.
        memory_format: Memory layout of the frozen part.
    """

    sees_pictures: ClassVar[bool] = True

    def __init__(
        self,
        *,
        backbones: Mapping[str, Backbone],
        channels: Annotated[int, Constraint(gt=0, le=1_024)] = 64,
        resolution: Annotated[int, Constraint(multiple_of=8, ge=16, le=2_048)] = 224,
        batch_norm: Literal["pretrained", "probed"] = "pretrained",
        fold_batch_norm: bool = True,
        projection: Literal["shared", "per_rank"] = "shared",
        scales: Literal["last"] | None = None,
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
            scales: `last`: the coarsest map and its head alone, into which no other scale is mixed. Default: all four.
            classes: Number of classes; 0 for unconditional heads.
            embedding: Initial class tables [at least `classes`, E], in the order of the classes; the reference takes
                ImageNet's for every dataset. Default: random, of width 64.
            seed: Seed of mixing and heads; with `rank` for a projection per rank.
            rank: Rank of this process.

        Raises:
            ValueError: The parts do not fit each other.
        """
        super().__init__()
        check_sizes(backbones, resolution=resolution)
        if embedding is not None and len(embedding) < classes:
            raise ValueError(f"class_embeddings: got {len(embedding)} rows, expected at least {classes}, one per class")
        self.resolution, self.classes = resolution, classes
        # Heads are built for the map sizes at the next power of two (256 for images of 224).
        nominal = 1 << (resolution - 1).bit_length()
        resolutions = {name: _mixed_sizes(each.nominal_strides, resolution=nominal) for name, each in backbones.items()}
        first = {name: len(each.strides) - 1 if scales == "last" else 0 for name, each in backbones.items()}
        self.splits = tuple(
            logits_of(
                _mixed_sizes(each.strides, resolution=resolution), resolutions=resolutions[name], first=first[name]
            )
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
        with seeded(seed):
            self.readouts, self.scratch = _projections(backbones, channels=channels, first=first, persistent=is_shared)
            if classes:
                embedding = torch.randn(classes, _EMBEDDING_WIDTH) if embedding is None else embedding[:classes]
            self.discriminators = nn.ModuleDict(
                {
                    name: MultiScaleHeads(
                        in_channels=mixing_channels(channels, levels=len(each.tap_channels))[1],
                        resolutions=resolutions[name],
                        channels=channels,
                        embedding=embedding if classes else None,
                        first=first[name],
                    )
                    for name, each in backbones.items()
                }
            )
        # After the heads, which must be equal on all ranks. Rank 0 has the same weights with either projection.
        if not is_shared and rank:
            with seeded(seed + rank):
                self.readouts, self.scratch = _projections(backbones, channels=channels, first=first, persistent=False)

    def forward(self, images: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return logits [B, N] of images [B, C, H, W] in [-1, 1]; `condition` is one-hot [B, K]; high means real."""
        return self.heads(self.frozen_features(images), condition)

    def frozen_features(self, images: Tensor) -> tuple[tuple[Tensor, ...], ...]:
        """Return the mixed maps [B, C_i, H_i, W_i], four or one per backbone; rows do not depend on each other."""
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
        logits, vectors = self.score(features, condition, self.vectors())
        self.keep_vectors(vectors)
        return logits

    def score(
        self, features: Sequence[Sequence[Tensor]], condition: Tensor | None, vectors: Sequence[Vectors]
    ) -> tuple[Tensor, list[Vectors]]:
        """Return logits as `heads` does, and the vectors of the spectral norm after those given, which stay.

        Raises:
            ValueError: As in `heads`.
        """
        if self.classes and condition is None:
            raise ValueError(f"condition: got none, expected one-hot [B, {self.classes}] for this discriminator")
        divided, after = divided_weights(spectral_convolutions(self.discriminators), vectors)
        weights, heads = iter(divided), zip(self.discriminators.values(), features, strict=True)
        return torch.cat([head(maps, condition, weights) for head, maps in heads], dim=1), after

    def vectors(self) -> list[Vectors]:
        """Return the current vectors of the spectral norm."""
        return vectors_of(spectral_convolutions(self.discriminators))

    def keep_vectors(self, vectors: Sequence[Vectors]) -> None:
        """Store the vectors that `score` returned."""
        keep_vectors(spectral_convolutions(self.discriminators), vectors)

    def execution_view(self, *, bfloat16: bool, compiled: Compiler, is_constant: bool = True) -> ExecutionView:
        """Return the discriminator as first-order phases call it: see `onestep.networks.execution_view`.

        `is_constant` has no effect: the frozen part is always constant.
        """
        return wrap_for_execution(self, bfloat16=bfloat16, compiled=compiled)

    def train(self, mode: bool = True) -> Projected:
        """Set the heads to training (or evaluation) mode; the frozen parts stay in evaluation mode."""
        super().train(mode)
        for frozen in (self.pretrained, self.readouts, self.scratch):
            frozen.eval()
        return self


def _projections(
    backbones: Mapping[str, Backbone], *, channels: int, first: Mapping[str, int], persistent: bool
) -> tuple[nn.ModuleDict, nn.ModuleDict]:
    """Draw the fixed layers between taps and heads: readouts of transformers, then the mixing of each backbone."""
    readouts, mixings = nn.ModuleDict(), nn.ModuleDict()
    for name, backbone in backbones.items():
        if backbone.token_width is not None:
            readout = TokenReadout(width=backbone.token_width, channels=backbone.tap_channels)
            readouts[name] = freeze(readout, persistent=persistent)
    for name, backbone in backbones.items():
        ccm, out = mixing_channels(channels, levels=len(backbone.tap_channels))
        mixing = CrossScaleMixing(
            tap_channels=backbone.tap_channels, ccm_channels=ccm, out_channels=out, first=first[name]
        )
        mixings[name] = freeze(mixing, persistent=persistent)
    return readouts, mixings


def _mixed_sizes(strides: Sequence[float], *, resolution: int) -> list[int]:
    """Return the sizes of the mixed maps: twice those of the taps."""
    return [2 * int(resolution / stride) for stride in strides]


class CrossScaleMixing(nn.Module):
    """Cross-channel mixing (CCM) of four taps by 1x1 convolutions, then cross-scale mixing (CSM) from coarse to fine.

    All weights keep torch's initial values. Map i + 1 is added to tap i, so `out_channels[i + 1] == ccm_channels[i]`.
    With `first`, it ends at the tap of that number, and has no weights of finer ones.
    State dict: `layer{0..3}_ccm.{weight,bias}` and `layer{0..3}_csm.out_conv.{weight,bias}`, as in the reference.
    """

    def __init__(
        self, *, tap_channels: Sequence[int], ccm_channels: Sequence[int], out_channels: Sequence[int], first: int = 0
    ) -> None:
        super().__init__()
        assert tuple(out_channels[1:]) == tuple(ccm_channels[:-1]), "a mixed map is added to the next finer tap"
        self.levels = range(first, len(tap_channels))
        for level in self.levels:
            self.add_module(f"layer{level}_ccm", nn.Conv2d(tap_channels[level], ccm_channels[level], kernel_size=1))
        for level in self.levels:
            self.add_module(f"layer{level}_csm", _ConvUpsample(ccm_channels[level], out_channels[level]))

    def forward(self, taps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Mix taps [B, C_i, H_i, W_i]; the mixed maps are [B, out_i, 2 H_i, 2 W_i]."""
        mixed: list[Tensor] = []
        for level in reversed(self.levels):
            tap = self.get_submodule(f"layer{level}_ccm")(taps[level])
            mixed.append(self.get_submodule(f"layer{level}_csm")(mixed[-1] + tap if mixed else tap))
        return tuple(reversed(mixed))


class _ConvUpsample(nn.Module):
    """A 1x1 convolution, then bilinear upsampling by two."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.out_conv = nn.Conv2d(channels_in, channels_out, kernel_size=1)

    def forward(self, features: Tensor) -> Tensor:
        # Differs from the reference: it upsamples, then convolves. Interpolation weights sum to 1, so the two commute
        # (up to rounding), and this order needs a quarter of the multiplications.
        maps = self.out_conv(features)
        return resized(maps, size=(2 * maps.shape[-2], 2 * maps.shape[-1]), align_corners=True)


def mixing_channels(channels: int, *, levels: int = 4) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the published channels after CCM and after CSM, for `channels` at the finest level.

    For 64: (64, 128, 256, 512) and (64, 64, 128, 256).
    """
    ccm = tuple(channels << level for level in range(levels))
    return ccm, (ccm[0], *ccm[:-1])


class TokenReadout(nn.Module):
    """Turns four token maps of one size into four maps of 4, 2, 1 and 1/2 times that size.

    Each map gets a 1x1 convolution from the tokens' `width` to its own of the `channels`, from fine to coarse; then the
    finest two are enlarged by a transposed convolution without overlap, and the coarsest is halved by a 3x3
    convolution. Class tokens are not among the inputs.

    State dict: `layer{0..3}.project.{weight,bias}`, `layer{0,1,3}.resize.{weight,bias}`.
    """

    def __init__(self, *, width: int, channels: Sequence[int]) -> None:
        super().__init__()
        finest, fine, middle, coarse = channels
        self.layer0 = _readout(width, finest, resize=nn.ConvTranspose2d(finest, finest, kernel_size=4, stride=4))
        self.layer1 = _readout(width, fine, resize=nn.ConvTranspose2d(fine, fine, kernel_size=2, stride=2))
        self.layer2 = _readout(width, middle, resize=nn.Identity())
        self.layer3 = _readout(width, coarse, resize=nn.Conv2d(coarse, coarse, kernel_size=3, stride=2, padding=1))

    def forward(self, tokens: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return maps, from fine to coarse, of four token maps [B, width, H, W], from the earliest block on."""
        return tuple(layer(each) for layer, each in zip(self.children(), tokens, strict=True))


def _readout(width: int, channels: int, *, resize: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(project=nn.Conv2d(width, channels, kernel_size=1), resize=resize))
