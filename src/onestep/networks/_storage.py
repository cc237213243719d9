"""Storage of frozen weights in bfloat16: half their memory, and numbers rounded to 8 significant bits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def store_frozen_weights(network: nn.Module, *, every: bool = False) -> int:
    """Store the frozen kernels and matrices of a denoiser in bfloat16, in place, and return how many numbers these are.

    With `every` all parameters count as frozen, else those that require no gradient. Biases, norms and embeddings,
    which are few numbers, stay float32. A network that casts its own weights (`casts_weights` of
    `onestep.networks.Network`) may have kernels in any layer; of others, those of torch's own convolutions and linear
    layers are stored, whose float32 products then cast them. Within autocast no product casts a stored weight again.
    """
    stored = 0
    for layer in network.modules():
        if not getattr(network, "casts_weights", False) and type(layer) not in _CASTING:
            continue
        chosen = [
            each
            for each in layer.parameters(recurse=False)
            if each.ndim >= 2 and each.dtype == torch.float32 and (every or not each.requires_grad)
        ]
        for parameter in chosen:
            parameter.data = parameter.data.to(torch.bfloat16)
            stored += parameter.numel()
        if chosen and type(layer) in _CASTING:
            layer.__class__ = _CASTING[type(layer)]
    return stored


class _Linear(nn.Linear):
    """A linear layer whose weight may be of another type than its input."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, _suited(self.weight, input), self.bias)


class _Conv2d(nn.Conv2d):
    """A convolution whose weight may be of another type than its input."""

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, _suited(self.weight, input), self.bias)


_CASTING: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: _Linear, nn.Conv2d: _Conv2d}


def _suited(weight: Tensor, x: Tensor) -> Tensor:
    """Return the weight in the type of `x`, or as it is where autocast chooses the type of the product."""
    is_cast = x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)
    return weight if is_cast else weight.to(x.dtype)
