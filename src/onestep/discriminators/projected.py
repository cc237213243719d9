"""A discriminator that judges the frozen features of other networks (Projected GANs, arXiv:2111.01007)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onestep.discriminators._backbones import Backbone, freeze
from onestep.discriminators._heads import MultiScaleHeads, logits_of
from onestep.discriminators._projection import Mixing, widths

__all__ = ["Projected"]

_EMBEDDING_WIDTH = 64  # of the class tables


class Projected(nn.Module):
    """Frozen backbones, a fixed random mixing of their taps, and trained heads: one critic a backbone.

    `parameters()` holds what is trained, which is the heads; what is frozen are buffers. Gradients reach the images.
    In training mode every forward moves the heads' buffers (batch statistics, vectors of the spectral norm), whoever
    trains; the frozen parts are in evaluation mode always.

    State dict, for each backbone `b` (i: map 0..3, fine to coarse; j: halving 0.. of a head):

    - `pretrained.{b}.network.*`: the frozen network, by its own names.
    - `scratch.{b}.layer{i}_ccm.{weight,bias}`, `scratch.{b}.layer{i}_csm.out_conv.{weight,bias}`: the fixed mixing.
    - `discriminators.{b}.mini_discs.{i}.main.{j}.main.0.{weight_orig,weight_u,weight_v,bias}`: convolutions, and
      `...main.{j}.main.1.{weight,bias,running_mean,running_var,num_batches_tracked}`: batch norms.
    - Without classes `discriminators.{b}.mini_discs.{i}.main.{last}.{weight_orig,weight_u,weight_v}`; with classes
      `discriminators.{b}.mini_discs.{i}.{cls.{weight_orig,weight_u,weight_v},embed.weight,embed_proj.{weight,bias}}`.

    The names under `discriminators` and below `scratch.{b}` are the reference's.

    Attributes:
        splits: Logits of each critic, in the order of the logits.
    """

    def __init__(
        self, *, backbones: Mapping[str, Backbone], channels: int, resolution: int, classes: int = 0, seed: int
    ) -> None:
        """Draw mixing and heads.

        Args:
            backbones: The frozen networks by name, as `load_backbone` returns them.
            channels: Width of mixing and heads at the finest size (64 in the paper).
            resolution: Size to which images are resized before the backbones (224 in the paper).
            classes: Number of classes the heads know; 0 for heads that look at the picture only.
            seed: Of mixing and heads.

        Raises:
            ValueError: No backbone, or the resolution leaves too little of the coarsest tap.
        """
        super().__init__()
        if not backbones:
            raise ValueError("backbones: expected at least one network to look through, found none")
        self.resolution, self.classes = resolution, classes
        self.splits = tuple(_logits(backbone, resolution=resolution) for backbone in backbones.values())
        self.pretrained = nn.ModuleDict(backbones)
        # Differs from the reference: there each rank mixes by other numbers while all share the heads. Here all the
        # numbers follow from the seed, so ranks agree and a run can be made again.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.scratch = nn.ModuleDict({name: _mixing(b, channels=channels) for name, b in backbones.items()})
            # Differs from the reference: there the table starts as ImageNet's class features, whatever the dataset.
            embedding = torch.randn(classes, _EMBEDDING_WIDTH) if classes else None
            self.discriminators = nn.ModuleDict(
                {
                    name: MultiScaleHeads(
                        in_channels=self.scratch[name].out_channels,
                        resolutions=_nominal_sizes(backbone, resolution=resolution),
                        channels=channels,
                        embedding=embedding,
                    )
                    for name, backbone in backbones.items()
                }
            )

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return logits [B, N] of images [B, C, H, W] in [-1, 1] under labels, one-hot [B, K]; large means real."""
        return self.judge(self.features(images), labels)

    def features(self, images: Tensor) -> tuple[tuple[Tensor, ...], ...]:
        """Return the mixed maps [B, C_i, H_i, W_i], four a backbone; rows do not see each other here."""
        # Differs from the reference: it normalises, then resizes, once a backbone. The two commute up to rounding.
        if images.shape[-2:] != (self.resolution, self.resolution):
            size = (self.resolution, self.resolution)
            images = F.interpolate(images, size=size, mode="bilinear", align_corners=False)
        # With channels innermost all that follows is up to twice as fast, on CPUs too.
        images = images.to(memory_format=torch.channels_last)
        return tuple(self.scratch[name](backbone(images)) for name, backbone in self.pretrained.items())

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
        self.pretrained.eval()
        self.scratch.eval()
        return self


def _mixing(backbone: Backbone, *, channels: int) -> nn.Module:
    """Draw the fixed mixing of a backbone's taps."""
    ccm, out = widths(channels, levels=len(backbone.tap_channels))
    return freeze(Mixing(tap_channels=backbone.tap_channels, ccm_channels=ccm, out_channels=out))


def _logits(backbone: Backbone, *, resolution: int) -> int:
    """Return how many logits the heads give that look through a backbone."""
    nominal = _nominal_sizes(backbone, resolution=resolution)
    return logits_of(_mixed_sizes(backbone, resolution=resolution), resolutions=nominal)


def _mixed_sizes(backbone: Backbone, *, resolution: int) -> list[int]:
    """Return the true sizes of the mixed maps: twice the taps'."""
    return [2 * (resolution // stride) for stride in backbone.strides]


def _nominal_sizes(backbone: Backbone, *, resolution: int) -> list[int]:
    """Return the sizes the heads are laid out for: those under the next power of two (256 where images have 224)."""
    return _mixed_sizes(backbone, resolution=1 << (resolution - 1).bit_length())
