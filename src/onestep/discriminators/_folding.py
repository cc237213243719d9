"""Batch norms of frozen networks, which are fixed scales and shifts, folded into the convolutions before them."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import torch
from torch import Tensor, fx, nn

_logger = logging.getLogger(__name__)


@torch.no_grad()
def fold_batch_norms(network: nn.Module) -> int:
    """Fold each batch norm that follows a convolution, and nothing else follows it, into its weight and bias.

    Saves a pass over each feature map, forth and back. Numbers move by rounding alone: the products are taken in
    float64. An activation that timm keeps inside its batch norms stays. Batch norms before a convolution, or after
    something else, stay as they are; so does a network whose way through depends on numbers.

    Args:
        network: Frozen (see `freeze`) and in evaluation mode, statistics as they are to be.

    Returns:
        How many were folded.
    """
    if not any(isinstance(part, nn.BatchNorm2d) for part in network.modules()):
        return 0
    try:
        pairs = list(_pairs(network))
    except (fx.proxy.TraceError, TypeError, RuntimeError) as error:
        _logger.warning("batch norms stay unfolded, which costs time alone: %s", " ".join(str(error).split())[:200])
        return 0
    for convolution, norm in pairs:
        part = network.get_submodule(norm)
        _fold(network.get_submodule(convolution), part)
        network.set_submodule(norm, _activation(part))
    return len(pairs)


class _Tracer(fx.Tracer):
    """Sees convolutions and batch norms as one step each, also those of timm."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, (nn.Conv2d, nn.BatchNorm2d)) or super().is_leaf_module(m, module_qualified_name)


def _pairs(network: nn.Module) -> Iterator[tuple[str, str]]:
    """Yield the names of a convolution and the batch norm that alone reads it, each used once."""
    calls = [node for node in _Tracer().trace(network).nodes if node.op == "call_module"]
    used = [node.target for node in calls]
    for node in calls:
        before = node.args[0] if node.args else None
        if (
            isinstance(network.get_submodule(node.target), nn.BatchNorm2d)
            and isinstance(before, fx.Node)
            and before.op == "call_module"
            and isinstance(network.get_submodule(before.target), nn.Conv2d)
            and len(before.users) == 1
            and used.count(node.target) == used.count(before.target) == 1
        ):
            yield before.target, node.target


def _fold(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    """Have the convolution compute what the two compute one after the other."""
    scale = _double(norm.weight, 1.0) / (norm.running_var.double() + norm.eps).sqrt()
    shift = (_double(convolution.bias, 0.0) - norm.running_mean.double()) * scale + _double(norm.bias, 0.0)
    weight = convolution.weight.double() * scale.reshape(-1, 1, 1, 1)
    folded = {"weight": weight.to(convolution.weight.dtype), "bias": shift.to(convolution.weight.dtype)}
    for name, value in folded.items():
        delattr(convolution, name)
        convolution.register_buffer(name, value)


def _double(value: Tensor | None, absent: float) -> Tensor:
    return torch.tensor(absent, dtype=torch.float64) if value is None else value.double()


def _activation(norm: nn.BatchNorm2d) -> nn.Module:
    """Return what timm's batch norms do besides normalising; of torch's own, nothing."""
    return getattr(norm, "act", None) or nn.Identity()
