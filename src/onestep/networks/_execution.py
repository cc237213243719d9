"""Number type, memory layout and compilation of a denoiser during training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from onestep.networks._layers import cast_once


def for_execution(
    network: nn.Module,
    *,
    half: bool,
    channels_last: bool,
    compiled: Callable[[Any], Any] = lambda function: function,
    is_constant: bool = True,
) -> Any:
    """Return a denoiser as first-order phases call it; its state dict does not change.

    Args:
        network: With its final frozen weights; all trained ones require a gradient.
        half: Whether the image path runs in bfloat16; weights, embedding, group norms and softmax stay float32.
        channels_last: Whether it computes with channels innermost.
        compiled: Compiles a callable.
        is_constant: Whether parameters without a gradient are constant, and so may be cast once.
    """
    network.image_type = torch.bfloat16 if half else torch.float32  # type: ignore[assignment]
    if half and is_constant:
        cast_once(network, dtype=torch.bfloat16)
    if channels_last:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return compiled(network)
