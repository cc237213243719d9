"""What the reference does to the batch norms of its backbones while it measures the size of their taps."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

_SIZE = 256  # of the image


@torch.no_grad()
def probe_batch_norms(network: nn.Module, *, channels: int) -> None:
    """Run a black image (zeros, [1, channels, 256, 256], not normalised) with batch norm in training mode, once.

    In the released code, as in Projected GAN's, each convolutional backbone meets such an image before it is put into
    evaluation mode, so that every running statistic becomes 0.9 times the pre-trained one plus 0.1 times that of this
    one image. The published numbers come from networks changed in this way. Networks without batch norm are left alone.
    """
    norms = [part for part in network.modules() if isinstance(part, _BatchNorm)]
    if not norms:
        return
    for norm in norms:
        norm.train()
    network(torch.zeros(1, channels, _SIZE, _SIZE))
    for norm in norms:
        norm.eval()
