"""The optimizer of each trained role: algorithm, schedule of the learning rate, lazy regularization, clipping."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import nn

from onestep.config.run import Optimizer, Schedule
from onestep.networks import settle_after_steps
from onestep.objectives import Phase
from onestep.training.sharding import Shards, clip_gradients, shards_of

# arXiv:1412.6980, arXiv:1711.05101 and arXiv:1908.03265.
_ALGORITHMS: Mapping[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "radam": torch.optim.RAdam,
}
_FUSED = ("adam", "adamw")


@dataclass(frozen=True, kw_only=True)
class RoleOptimizer:
    """The optimizer of the parameters that a role trains.

    Attributes:
        lr: Learning rate before the schedule.
        images: Length of the run, in images.
        shards: Of a network that the ranks hold in parts, of which this rank updates its own; None for a whole one.
    """

    torch: torch.optim.Optimizer
    lr: float
    schedule: Schedule | None = None
    images: int = 0
    clip_norm: float | None = None
    shards: Shards | None = None

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The trained parameters of the network."""
        own = [parameter for group in self.torch.param_groups for parameter in group["params"]]
        return own if self.shards is None else self.shards.whole

    def step(self, *, images_seen: int) -> None:
        """Clip the gradient and update the parameters with the learning rate after `images_seen` images.

        The position in the schedule is not state of its own, so a resumed run continues it exactly.
        """
        if self.clip_norm is not None:
            clip_gradients(self.shards or self.parameters, self.clip_norm)
        if self.schedule is not None:
            for group in self.torch.param_groups:
                group["lr"] = self.lr * lr_factor(self.schedule, images_seen=images_seen, images=self.images)
        self.torch.step()


Optimizers: TypeAlias = Mapping[str, RoleOptimizer]


def let_train(role: str, optimizers: Optimizers) -> None:
    """Let gradients reach the trained parameters of one role only; frozen ones are in no optimizer."""
    for name, each in optimizers.items():
        for parameter in each.parameters:
            parameter.requires_grad_(name == role)


def lr_factor(schedule: Schedule, *, images_seen: int, images: int) -> float:
    """Return the factor on the learning rate of a step that begins at `images_seen` of `images` images."""
    if images_seen < schedule.warmup:
        return images_seen / schedule.warmup
    if schedule.name == "cosine":
        position = (images_seen - schedule.warmup) / max(images - schedule.warmup, 1)
        return schedule.final + (1 - schedule.final) * (1 + math.cos(math.pi * min(position, 1.0))) / 2
    if schedule.name == "inverse_sqrt" and schedule.decay_from is not None:
        return 1 / math.sqrt(max(images_seen / schedule.decay_from, 1.0))
    return 1.0


def lazy_reg_ratio(phases: Sequence[Phase], role: str) -> float:
    """Return k / (k + 1) if `role` has a lazy regularizer on every k-th step, else 1.

    StyleGAN2 (arXiv:1912.04958, appendix B) corrects the learning rate and the betas by it for the additional step.
    """
    lazy = [phase for phase in phases if phase.trains == role and phase.lazy_regularizer]
    return math.prod((phase.every / (phase.every + 1) for phase in lazy), start=1.0)


def build_optimizers(
    networks: Mapping[str, nn.Module],
    *,
    phases: Sequence[Phase],
    options: Mapping[str, Optimizer],
    images: int = 0,
    fused: bool = False,
) -> dict[str, RoleOptimizer]:
    """Return the optimizer of each role that a phase trains, over its parameters that require a gradient.

    The `options` are as published, before the correction for lazy regularization; `images` is the length of the run.

    Raises:
        ValueError: A role has no optimizer, no trainable parameter, or an algorithm without a fused kernel.
    """
    optimizers = {}
    for role in dict.fromkeys(phase.trains for phase in phases):
        trainable = [p for p in networks[role].parameters() if p.requires_grad]
        if not trainable or role not in options:
            missing = f"optimizers.{role}: got none" if trainable else f"freeze: got every parameter of the {role}"
            raise ValueError(f"{missing}, expected some, because it is trained")
        chosen, ratio = options[role], lazy_reg_ratio(phases, role)
        name, lr = chosen.name, float(chosen.lr) * ratio
        if name not in _ALGORITHMS:
            raise ValueError(f"optimizer: got {name!r}, expected one of {', '.join(_ALGORITHMS)}")
        if fused and name not in _FUSED:
            raise ValueError(f"compile.fused_optimizer: got true, expected false with {name}, which has no kernel")
        shards = shards_of(trainable)
        algorithm = _ALGORITHMS[name](
            trainable if shards is None else shards.own,
            lr=lr,
            betas=tuple(float(beta) ** ratio for beta in chosen.betas),
            eps=float(chosen.eps),
            weight_decay=chosen.weight_decay or 0.0,
            **({"fused": True} if fused else {"foreach": True}),
        )
        settle_after_steps(networks[role], algorithm)
        optimizers[role] = RoleOptimizer(
            torch=algorithm, lr=lr, schedule=chosen.schedule, images=images, clip_norm=chosen.clip_norm, shards=shards
        )
    return optimizers
