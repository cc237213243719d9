"""The released formulation of a D2O step on our networks: the other side of the benchmark's comparison.

Written after github.com/Zyriix/D2O (its loss and training loop), so that `bench train` compares with what the authors
run, wherever that is another computation of the same numbers:

- R1 differentiates twice, through the frozen backbones;
- generated and real images pass the frozen features one after the other, channels outermost, batch norms not folded;
- CSM enlarges maps before its 1x1 convolution;
- the generator's phase also computes weight gradients that no optimizer uses: of the frozen convolutions of up- and
  downsampling blocks, which the released list of frozen names does not match;
- NaN is replaced, and the EMA updated, parameter by parameter, frozen ones included;
- the optimizer is torch's with its default implementation.

The order of images, the noise and the networks are ours.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onestep.config.run import Run
from onestep.objectives import Networks, Phase
from onestep.training.assembly import Training
from onestep.training.ema import ema_decay
from onestep.training.step import StepData

_FROZEN_WITH_GRADIENT = ("block", "in")
"""Parts of the names of those frozen parameters that the released code frees of gradients."""


def released_run(run: Run) -> Run:
    """Return a run with the options of its objective and discriminator by which the released code computes."""
    objective, discriminator = run.objective, run.discriminator
    if "r1_gradient" in objective.options:
        changed = {**objective.options, "r1_gradient": "double_backward"}
        run = replace(run, objective=replace(objective, options=changed))
    if discriminator is not None and "fold_batch_norm" in discriminator.options:
        changed = {**discriminator.options, "fold_batch_norm": False}
        run = replace(run, discriminator=replace(discriminator, options=changed))
    return run


def release(training: Training) -> None:
    """Give networks and optimizers of a new training the layout and the implementation of the released code."""
    for network in training.networks.values():
        if hasattr(network, "memory_format"):
            network.memory_format = torch.contiguous_format  # type: ignore[assignment]
        for name, part in list(network.named_modules()):
            if name.startswith("scratch.") and name.endswith("_csm"):
                network.set_submodule(name, _UpsampleConv(part.get_submodule("out_conv")))
    for optimizer in training.optimizers.values():
        for group in optimizer.torch.param_groups:
            group["foreach"] = group["fused"] = None


class _UpsampleConv(nn.Module):
    """Bilinear upsampling by two, then a 1x1 convolution."""

    def __init__(self, convolution: nn.Module) -> None:
        super().__init__()
        self.out_conv = convolution

    def forward(self, features: Tensor) -> Tensor:
        return self.out_conv(F.interpolate(features, scale_factor=2, mode="bilinear", align_corners=True))


def released_views(wrapped: Networks, *, families: Mapping[str, str], rows: int) -> Networks:
    """Return networks as phases call them, with discriminators that take more than `rows` images in two parts."""
    found = dict(wrapped)
    for role, family in families.items():
        if family == "discriminators":
            view = copy.copy(found[role])
            # The dataclass is frozen; only this copy is changed.
            object.__setattr__(view, "frozen_features", _apart(view.frozen_features, rows=rows))
            found[role] = view
    return found


class _Halves(NamedTuple):
    """Feature maps of generated and of real images, which are sliced as if they were one tensor."""

    first: Tensor
    second: Tensor

    def __getitem__(self, rows: Any) -> Any:
        return self.first if rows.start is None else self.second


def _apart(features: Callable[[Tensor], Sequence[Sequence[Tensor]]], *, rows: int) -> Callable[[Tensor], Any]:
    """Return `features` that computes more than `rows` images in two halves."""

    def in_halves(images: Tensor) -> Any:
        if len(images) <= rows:
            return features(images)
        first, second = (features(half) for half in images.chunk(2))
        return [[_Halves(*maps) for maps in zip(*critic, strict=True)] for critic in zip(first, second, strict=True)]

    return in_halves


def released_phase(training: Training, phase: Phase, *, networks: Networks, data: StepData) -> None:
    """Take the step of one phase."""
    optimizer = training.optimizers[phase.trains]
    trained = {id(parameter) for parameter in optimizer.parameters}
    for role, network in training.networks.items():
        own = role == phase.trains
        for name, parameter in network.named_parameters():
            is_free = id(parameter) not in trained and any(part in name for part in _FROZEN_WITH_GRADIENT)
            parameter.requires_grad_(own and not is_free)
    optimizer.torch.zero_grad(set_to_none=True)
    batches = data.batches(phase.name)
    for batch in batches:
        share = len(batch.images) / len(data.rows)
        (phase.loss(networks, batch).value * (phase.gain * share)).backward()
    for parameter in training.networks[phase.trains].parameters():
        if parameter.grad is not None:
            torch.nan_to_num(parameter.grad, nan=0.0, posinf=1e5, neginf=-1e5, out=parameter.grad)
            if id(parameter) not in trained:
                parameter.grad = None
    optimizer.step(images_seen=data.images_seen)


class ReleasedAverage:
    """The EMA of a whole network, one parameter after the other."""

    def __init__(self, network: nn.Module) -> None:
        self._network, self._averages = network, [each.detach().clone() for each in network.parameters()]

    @torch.no_grad()
    def update(self, *, images_seen: int, run: Run) -> None:
        """Average in the weights after a step that began at `images_seen`."""
        keep = ema_decay(images_seen, batch=run.batch, half_life=run.ema.half_life, ramp_up=run.ema.ramp_up)
        for average, parameter in zip(self._averages, self._network.parameters(), strict=True):
            average.copy_(parameter.detach().lerp(average, keep))
