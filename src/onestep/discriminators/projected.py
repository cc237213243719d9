"""A discriminator that judges the frozen features of other networks (Projected GANs, arXiv:2111.01007)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from onestep.discriminators._backbones import Backbone, freeze
from onestep.discriminators._folding import fold_batch_norms
from onestep.discriminators._heads import MultiScaleHeads, logits_of
from onestep.discriminators._probe import probe_batch_norms
from onestep.discriminators._projection import Mixing, widths
from onestep.discriminators._timm_backbones import TimmTaps
from onestep.discriminators._vit_readout import Readout

__all__ = ["Projected"]

_EMBEDDING_WIDTH = 64  # of the class tables, where none is given


class Projected(nn.Module):
    """Frozen backbones, a fixed random mixing of their taps, and trained heads: one critic a backbone.

    `parameters()` holds what is trained, which is the heads; what is frozen are buffers. Gradients reach the images.
    In training mode every forward moves the heads' buffers (batch statistics, vectors of the spectral norm), whoever
    trains; the frozen parts are in evaluation mode always.

    State dict, for each backbone `b` (i: map 0..3, fine to coarse; j: halving 0.. of a head):

    - `pretrained.{b}.network.*`: the frozen network, by its own names; a batch norm that was folded into the
      convolution before it is gone, and that convolution has a `bias`.
    - `readouts.{b}.layer{i}.{project,resize}.{weight,bias}`: of a vision transformer, the fixed readout of its tokens
      (no `resize` at i = 2).
    - `scratch.{b}.layer{i}_ccm.{weight,bias}`, `scratch.{b}.layer{i}_csm.out_conv.{weight,bias}`: the fixed mixing.
    - `discriminators.{b}.mini_discs.{i}.main.{j}.main.0.{weight_orig,weight_u,weight_v,bias}`: convolutions, and
      `...main.{j}.main.1.{weight,bias,running_mean,running_var,num_batches_tracked}`: batch norms.
    - Without classes `discriminators.{b}.mini_discs.{i}.main.{last}.{weight_orig,weight_u,weight_v}`; with classes
      `discriminators.{b}.mini_discs.{i}.{cls.{weight_orig,weight_u,weight_v},embed.weight,embed_proj.{weight,bias}}`.

    The names under `discriminators` and below `scratch.{b}` are the reference's. Where each rank has its own
    projection, `readouts` and `scratch` are not in it: they follow from seed and rank, and no rank may take another's.

    Attributes:
        splits: Logits of each critic, in the order of the logits.
        memory_format: In which images pass the frozen part.
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
        """Draw mixing and heads.

        Args:
            backbones: The frozen networks by name, as `load_backbone` returns them.
            channels: Width of mixing and heads at the finest size (64 in the paper).
            resolution: Size to which images are resized before the backbones (224 in the paper).
            batch_norm: Statistics by which the backbones normalise: `pretrained`, as their files have them; `probed`,
                moved a tenth of the way to those of one black image, as in the reference (see `probe_batch_norms`).
            fold_batch_norm: Whether batch norms of timm's networks become part of the convolutions before them: less
                to compute, and numbers that differ by rounding.
            projection: What is random and fixed, mixing and readout: `shared`, the same numbers on all ranks; or
                `per_rank`, other numbers on each, as in the reference, where the ranks share the heads alone.
            classes: Number of classes the heads know; 0 for heads that look at the picture only.
            embedding: Rows with which the class tables start [at least `classes`, E], in the order of the classes; the
                reference takes ImageNet's, whatever the dataset. Default: random, 64 wide.
            seed: Of mixing and heads.
            rank: Of this process; matters to a projection per rank.

        Raises:
            ValueError: No backbone, or the resolution leaves too little of the coarsest tap or is not that of a
                transformer, or the embedding has too few rows.
        """
        super().__init__()
        _check(backbones, resolution=resolution, classes=classes, embedding=embedding)
        self.resolution, self.classes = resolution, classes
        self.splits = tuple(_logits(backbone, resolution=resolution) for backbone in backbones.values())
        self.pretrained = nn.ModuleDict(backbones)
        if batch_norm == "probed":
            for backbone in backbones.values():
                probe_batch_norms(backbone.network, channels=backbone.channels)
        for backbone in backbones.values():
            if fold_batch_norm and isinstance(backbone.network, TimmTaps):
                fold_batch_norms(backbone.network)
        # With channels innermost the frozen part is up to twice as fast, on CPUs too.
        self.memory_format = torch.channels_last
        shared = projection == "shared"
        with _drawing(seed):
            self.readouts, self.scratch = _projections(backbones, channels=channels, persistent=shared)
            if classes:
                embedding = torch.randn(classes, _EMBEDDING_WIDTH) if embedding is None else embedding[:classes]
            self.discriminators = nn.ModuleDict(
                {
                    name: MultiScaleHeads(
                        in_channels=self.scratch[name].out_channels,
                        resolutions=_nominal_sizes(backbone, resolution=resolution),
                        channels=channels,
                        embedding=embedding if classes else None,
                    )
                    for name, backbone in backbones.items()
                }
            )
        # Anew after the heads, which must not differ between ranks. Rank 0 has the same numbers in either projection.
        if not shared and rank:
            with _drawing(seed + rank):
                self.readouts, self.scratch = _projections(backbones, channels=channels, persistent=False)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return logits [B, N] of images [B, C, H, W] in [-1, 1] under labels, one-hot [B, K]; large means real."""
        return self.judge(self.features(images), labels)

    def features(self, images: Tensor) -> tuple[tuple[Tensor, ...], ...]:
        """Return the mixed maps [B, C_i, H_i, W_i], four a backbone; rows do not see each other here."""
        images = images.to(memory_format=self.memory_format)
        return tuple(self.scratch[name](self._taps(name, images)) for name in self.pretrained)

    def _taps(self, name: str, images: Tensor) -> tuple[Tensor, ...]:
        """Return the taps of a backbone, fine to coarse, each half the size of the one before."""
        taps = self.pretrained[name](images, size=self.resolution)
        return self.readouts[name](taps) if name in self.readouts else taps

    def judge(self, features: Sequence[Sequence[Tensor]], labels: Tensor | None = None) -> Tensor:
        """Return logits [B, N] of what `features` returned; in training mode rows meet in the batch norms.

        Raises:
            ValueError: The heads know classes and there are no labels.
        """
        if self.classes and labels is None:
            raise ValueError(f"this discriminator knows {self.classes} classes and was given no labels")
        heads = self.discriminators.values()
        return torch.cat([head(maps, labels) for head, maps in zip(heads, features, strict=True)], dim=1)

    def train(self, mode: bool = True) -> Projected:
        """Put the heads into training (or evaluation) mode; the frozen parts stay in evaluation mode."""
        super().train(mode)
        for frozen in (self.pretrained, self.readouts, self.scratch):
            frozen.eval()
        return self


@contextlib.contextmanager
def _drawing(seed: int) -> Iterator[None]:
    """Let torch's generator draw from `seed` in here, and go on outside as if nothing had been drawn."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _projections(
    backbones: Mapping[str, Backbone], *, channels: int, persistent: bool
) -> tuple[nn.ModuleDict, nn.ModuleDict]:
    """Draw what is fixed between the taps and the heads: readouts of transformers, then the mixing of each backbone."""
    readouts = {
        name: Readout(width=backbone.token_width, channels=backbone.tap_channels)
        for name, backbone in backbones.items()
        if backbone.token_width is not None
    }
    mixings = {name: _mixing(backbone, channels=channels) for name, backbone in backbones.items()}
    frozen = [
        nn.ModuleDict({name: freeze(part, persistent=persistent) for name, part in parts.items()})
        for parts in (readouts, mixings)
    ]
    return frozen[0], frozen[1]


def _mixing(backbone: Backbone, *, channels: int) -> Mixing:
    """Draw the fixed mixing of a backbone's taps."""
    ccm, out = widths(channels, levels=len(backbone.tap_channels))
    return Mixing(tap_channels=backbone.tap_channels, ccm_channels=ccm, out_channels=out)


def _check(backbones: Mapping[str, Backbone], *, resolution: int, classes: int, embedding: Tensor | None) -> None:
    """Raise ValueError where the parts do not fit each other."""
    if not backbones:
        raise ValueError("backbones: expected at least one network to look through, found none")
    for name, backbone in backbones.items():
        if backbone.image_size not in (None, resolution):
            raise ValueError(
                f"resolution {resolution}: the backbone {name} takes images of {backbone.image_size} pixels, no others"
            )
    if embedding is not None and len(embedding) < classes:
        raise ValueError(f"the class embeddings have {len(embedding)} rows, but there are {classes} classes")


def _logits(backbone: Backbone, *, resolution: int) -> int:
    """Return how many logits the heads give that look through a backbone."""
    nominal = _nominal_sizes(backbone, resolution=resolution)
    return logits_of(_mixed_sizes(backbone.strides, resolution=resolution), resolutions=nominal)


def _nominal_sizes(backbone: Backbone, *, resolution: int) -> list[int]:
    """Return the sizes the heads are laid out for: those under the next power of two (256 where images have 224)."""
    return _mixed_sizes(backbone.nominal_strides, resolution=1 << (resolution - 1).bit_length())


def _mixed_sizes(strides: Sequence[float], *, resolution: int) -> list[int]:
    """Return the sizes of the mixed maps: twice the taps'."""
    return [2 * int(resolution / stride) for stride in strides]
