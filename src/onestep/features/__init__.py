"""Contract of feature extractors: from pixels to the vectors that metrics compare.

Legend: B images, C H W an image, D feature width, K classes. `pixels` are uint8.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

Precision = Literal["float32", "tf32", "bfloat16"]


class Features(NamedTuple):
    """Features of a batch."""

    features: Tensor  # float32 [B, D]
    probabilities: Tensor | None  # float32 [B, K], rows sum to 1; None if the network is not a classifier


class Extractor(Protocol):
    """An instance of a class of this folder.

    The constructor takes keyword arguments: `weights`, the path of the network's file, and its own options. A
    `precision` other than float32 is marked in tables. ValueError: the file does not hold the network.
    """

    def __call__(self, pixels: Tensor) -> Features:
        """Extract features of pixels, uint8 [B, C, H, W], on their device, independently of the batch size.

        ValueError: the pixels have another type or shape.
        """
        ...


@contextlib.contextmanager
def computing(precision: Precision, *, device: torch.device) -> Iterator[None]:
    """Compute matrix products and convolutions in `precision`, without gradients, inside the block.

    float32 is the precision of reported numbers. It disables TensorFloat-32, torch's default for convolutions on CUDA
    devices. On a CPU tf32 is float32.
    """
    convolutions, products = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision != "float32"
    half = torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")
    try:
        with torch.no_grad(), half:
            yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = convolutions, products
