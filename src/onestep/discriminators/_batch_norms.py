"""Batch norms of frozen backbones: the reference's change of their statistics, and their folding into convolutions."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

_PROBE_SIZE = 256  # pixels
_logger = logging.getLogger(__name__)


@torch.no_grad()
def probe_batch_norms(network: nn.Module, *, channels: int) -> None:
    """Run a black image (zeros, [1, channels, 256, 256], not normalised) once with batch norms in training mode.

    The released code, like that of Projected GAN, passes such an image through each convolutional backbone before it
    sets evaluation mode, so that every running statistic becomes 0.9 times the pre-trained one plus 0.1 times that of
    this image. The published numbers come from networks changed in this way. Networks without batch norms do not run.
    """
    norms = [part for part in network.modules() if isinstance(part, _BatchNorm)]
    if not norms:
        return
    for norm in norms:
        norm.train()
    network(torch.zeros(1, channels, _PROBE_SIZE, _PROBE_SIZE))
    for norm in norms:
        norm.eval()


@torch.no_grad()
def fold_batch_norms(network: nn.Module) -> int:
    """Fold each batch norm that is the only reader of a convolution into the convolution's weight and bias.

    This saves reading and writing each feature map once. Results change by rounding only; products are computed in
    float64. An activation inside timm's batch norms stays. Other batch norms stay, and so does a network whose control
    flow depends on its inputs. The network is frozen (see `freeze`), with final statistics. Return the number folded.
    """
    if not any(isinstance(part, nn.BatchNorm2d) for part in network.modules()):
        return 0
    try:
        pairs = list(_pairs(network))
    except (fx.proxy.TraceError, TypeError, RuntimeError) as error:
        _logger.warning("batch norms are not folded, which costs time only: %s", " ".join(str(error).split())[:200])
        return 0
    for convolution, name, norm in pairs:
        _fold(convolution, norm)
        network.set_submodule(name, getattr(norm, "act", None) or nn.Identity())
    return len(pairs)


class _Tracer(fx.Tracer):
    """Traces convolutions and batch norms, also timm's subclasses, as one node each."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, (nn.Conv2d, nn.BatchNorm2d)) or super().is_leaf_module(m, module_qualified_name)


def _pairs(network: nn.Module) -> Iterator[tuple[nn.Conv2d, str, nn.BatchNorm2d]]:
    """Yield each convolution and the batch norm, with its name, that is its only reader; both are called once."""
    calls = [node for node in _Tracer().trace(network).nodes if node.op == "call_module"]
    used = [node.target for node in calls]
    for node in calls:
        before = node.args[0] if node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module":
            continue
        name, convolution = str(node.target), network.get_submodule(str(before.target))
        norm = network.get_submodule(name)
        is_only_reader = len(before.users) == 1 and used.count(node.target) == used.count(before.target) == 1
        if is_only_reader and isinstance(norm, nn.BatchNorm2d) and isinstance(convolution, nn.Conv2d):
            yield convolution, name, norm


def _fold(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    """Change the convolution so that it computes both."""
    mean, variance, dtype = norm.running_mean, norm.running_var, convolution.weight.dtype
    assert mean is not None and variance is not None, "a frozen batch norm has statistics"
    scale = _double(norm.weight, 1.0) / (variance.double() + norm.eps).sqrt()
    shift = (_double(convolution.bias, 0.0) - mean.double()) * scale + _double(norm.bias, 0.0)
    weight = convolution.weight.double() * scale.reshape(-1, 1, 1, 1)
    for name, value in {"weight": weight, "bias": shift}.items():
        delattr(convolution, name)
        convolution.register_buffer(name, value.to(dtype))


def _double(value: Tensor | None, default: float) -> Tensor:
    return torch.tensor(default, dtype=torch.float64) if value is None else value.double()
