"""The contract of a denoiser, its builder, and the rule of what may be frozen.

Legend: B images, C H W an image, K classes. Images are float32 around [-1, 1] (the data's standard deviation is
about 0.5) plus noise of standard deviation sigma; `labels` are one-hot float32 [B, K], or None.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from onestep.networks._builder import build_denoiser, load_denoiser
from onestep.networks._freezing import frozen_parameters
from onestep.networks._layers import cast_once
from onestep.networks._published import published_architecture
from onestep.networks._teacher import one_step_config, teacher_weights_for

__all__ = [
    "Denoiser",
    "build_denoiser",
    "cast_once",
    "frozen_parameters",
    "load_denoiser",
    "one_step_config",
    "published_architecture",
    "teacher_weights_for",
]


class Denoiser(Protocol):
    """What `build_denoiser` returns, as an `nn.Module`: a teacher and a generator alike.

    Attributes:
        img_resolution: H and W.
        img_channels: C.
        label_dim: K; 0 is unconditional.
        sigma_min: Smallest noise level it takes.
        sigma_max: Largest noise level it takes.
        sigma_data: Standard deviation of the data it was made for.
        use_fp16: Whether it runs in half precision where the images are on a CUDA device.
        image_type: In which it runs instead, on any device; None leaves it to `use_fp16`.
    """

    img_resolution: int
    img_channels: int
    label_dim: int
    sigma_min: float
    sigma_max: float
    sigma_data: float
    use_fp16: bool
    image_type: torch.dtype | None

    def forward(
        self,
        x: Tensor,
        sigma: Tensor,
        labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
        *,
        force_fp32: bool = False,
    ) -> Tensor:
        """Estimate the clean images under the noise.

        Args:
            x: Noisy images [B, C, H, W], float32 or float64.
            sigma: Their noise levels [B]; also anything that broadcasts to it.
            labels: Their classes; a conditional network takes None as all zero.
            augment_labels: How they were augmented [B, augment_dim]; None is not at all.
            force_fp32: Whether to run in single precision all the same.

        Returns:
            Images [B, C, H, W].
        """
        ...
