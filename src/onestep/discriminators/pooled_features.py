"""A discriminator of pooled features: small trained heads on the mean of the last features of frozen networks.

The D2O reference contains one on the features of LPIPS (arXiv:1801.03924) and does not use it in its scripts.
Legend: B images, C H W an image, D features, N logits per image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onestep.config.constraints import Constraint
from onestep.discriminators import Compiler, ExecutionView, seeded, wrap_for_execution
from onestep.discriminators._backbones import Backbone, TimmTaps, check_sizes, fold_batch_norms

__all__ = ["PooledFeatures"]


class PooledFeatures(nn.Module):
    """The last tap of each frozen backbone, its mean over pixels, and a head: linear, SiLU, linear.

    The normalisation of the images is that of the backbone's own weights; for `vgg16.tv_in1k`, whose last tap is
    relu5_3, it is that of LPIPS. It has no classes: an image is scored without its condition. Rows do not interact.

    State dict, for each backbone `b`: `pretrained.{b}.network.*`, as of `Projected`; `discriminators.{b}.fc.weight`,
    `.fc.bias`, `.out.weight`, with the reference's names.

    Attributes:
        splits: `logits` for each backbone.
    """

    sees_pictures: ClassVar[bool] = True

    def __init__(
        self,
        *,
        backbones: Mapping[str, Backbone],
        resolution: Annotated[int, Constraint(ge=16, le=2_048)] | None = None,
        logits: Annotated[int, Constraint(gt=0, le=4_096)] = 1,
        fold_batch_norm: bool = True,
        seed: int,
    ) -> None:
        """Draw the heads.

        Args:
            backbones: The frozen networks by name, as `build_backbone` returns them.
            resolution: Size to which images are resized before the backbones; by default their own, as LPIPS does.
            logits: Number of logits of each head; a loss is their mean.
            fold_batch_norm: Whether batch norms of timm's networks are folded into the convolutions before them.
            seed: Seed of the heads.

        Raises:
            ValueError: There is no backbone, or one that takes another size.
        """
        super().__init__()
        check_sizes(backbones, resolution=resolution)
        self.resolution = resolution
        self.splits = (logits,) * len(backbones)
        self.pretrained = nn.ModuleDict(backbones)
        for each in backbones.values():
            if fold_batch_norm and isinstance(each.network, TimmTaps):
                fold_batch_norms(each.network)
        with seeded(seed):
            widths = {name: each.token_width or each.tap_channels[-1] for name, each in backbones.items()}
            self.discriminators = nn.ModuleDict({name: _Head(width, logits) for name, width in widths.items()})

    def forward(self, images: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return logits [B, N] of images [B, C, H, W] in [-1, 1]; high means real; the condition is not used."""
        return self.heads(self.frozen_features(images), condition)

    def frozen_features(self, images: Tensor) -> tuple[tuple[Tensor, ...], ...]:
        """Return the mean over pixels of the last tap [B, D] of each backbone; rows do not depend on each other."""
        images = images.to(memory_format=torch.channels_last)
        taps = (self.pretrained[name](images, size=self.resolution)[-1] for name in self.pretrained)
        return tuple((tap.mean(dim=(2, 3)),) for tap in taps)

    def heads(self, features: Sequence[Sequence[Tensor]], condition: Tensor | None = None) -> Tensor:
        """Return logits [B, N] of frozen features; the condition is not used."""
        pairs = zip(self.discriminators.values(), features, strict=True)
        return torch.cat([head(pooled) for head, (pooled,) in pairs], dim=1)

    def execution_view(self, *, bfloat16: bool, compiled: Compiler, is_constant: bool = True) -> ExecutionView:
        """Return the discriminator as first-order phases call it: see `onestep.networks.execution_view`.

        `is_constant` has no effect: the frozen part is always constant.
        """
        return wrap_for_execution(self, bfloat16=bfloat16, compiled=compiled)

    def train(self, mode: bool = True) -> PooledFeatures:
        """Set the heads to training (or evaluation) mode; the frozen parts stay in evaluation mode."""
        super().train(mode)
        self.pretrained.eval()
        return self


class _Head(nn.Module):
    """From features [B, D] to logits [B, N]; the first layer begins as in He et al. (arXiv:1502.01852)."""

    def __init__(self, width: int, logits: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, width)
        nn.init.kaiming_normal_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)
        self.out = nn.Linear(width, logits, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        return self.out(F.silu(self.fc(features)))
