"""Adam, or RAdam, with the constants the paper states, corrected where a network also takes lazy steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from onestep.objectives import Phase

# arXiv:1412.6980 and arXiv:1908.03265.
_ALGORITHMS = {"adam": torch.optim.Adam, "radam": torch.optim.RAdam}


def laziness(phases: Sequence[Phase], role: str) -> float:
    """Return k / (k + 1) where `role` takes a lazy step every k-th step, else 1.

    The extra step every k steps is made up for by a smaller step and shorter memory (StyleGAN2, arXiv:1912.04958,
    appendix B, lazy regularisation).
    """
    ratio = 1.0
    for phase in phases:
        if phase.trains == role and phase.every > 1:
            ratio *= phase.every / (phase.every + 1)
    return ratio


def build_optimizers(
    players: Mapping[str, nn.Module],
    *,
    phases: Sequence[Phase],
    options: Mapping[str, Mapping[str, Any]],
    fused: bool = False,
) -> dict[str, torch.optim.Optimizer]:
    """Return one optimizer per trained role, over the parameters that require a gradient.

    Args:
        players: The networks by role; frozen parameters have `requires_grad` off already.
        phases: The objective's steps; they say which roles train, and how lazily.
        options: For each role `lr`, `betas` and `eps` as published, before the correction for laziness, and `name`,
            adam or radam; adam where there is none.
        fused: Whether a step is one kernel; torch has one for adam. Default: one kernel an operation.

    Raises:
        ValueError: A trained role has an unknown optimizer, or nothing left to train.
    """
    optimizers = {}
    for role in dict.fromkeys(phase.trains for phase in phases):
        trainable = [p for p in players[role].parameters() if p.requires_grad]
        if not trainable:
            raise ValueError(f"every parameter of the {role} is frozen; nothing is left to train")
        optimizers[role] = _optimizer(trainable, options=options[role], ratio=laziness(phases, role), fused=fused)
    return optimizers


def _optimizer(
    parameters: list[nn.Parameter], *, options: Mapping[str, Any], ratio: float, fused: bool
) -> torch.optim.Optimizer:
    name = options.get("name", "adam")
    if name not in _ALGORITHMS:
        raise ValueError(f"optimizer {name!r}: expected {' or '.join(_ALGORITHMS)}")
    if fused and name != "adam":
        raise ValueError(f"compile.fused_optimizer: true, but torch has no fused {name}; only adam")
    first, second = (float(beta) ** ratio for beta in options["betas"])
    kernels = {"fused": True} if fused else {"foreach": True}
    return _ALGORITHMS[name](
        parameters, lr=float(options["lr"]) * ratio, betas=(first, second), eps=float(options["eps"]), **kernels
    )
