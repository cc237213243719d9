"""How exactly a feature network computes: the reported path is float32; faster ones are marked wherever they show."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal

import torch

Precision = Literal["float32", "tf32", "bfloat16"]


@contextlib.contextmanager
def computing(precision: Precision, *, device: torch.device) -> Iterator[None]:
    """Compute matrix products and convolutions, without gradients, in `precision` as long as this lasts.

    float32 switches off TensorFloat-32, which torch would else use for convolutions on CUDA; on a CPU tf32 is float32.
    """
    convolutions, products = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision != "float32"
    half = torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")
    try:
        with torch.no_grad(), half:
            yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = convolutions, products
