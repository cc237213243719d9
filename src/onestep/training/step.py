"""One training step: the due phases in turn, each one optimizer step of one network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from onestep import distributed
from onestep.distributed import Ranks
from onestep.objectives import Batch, Loss, Phase, Players

Optimizers = Mapping[str, torch.optim.Optimizer]

# What the reference puts in place of gradients that are not finite.
_NOT_A_NUMBER, _POSITIVE, _NEGATIVE = 0.0, 1e5, -1e5


@dataclass(frozen=True, kw_only=True)
class PhaseReport:
    """What one phase did; tensors stay on the device, so that logging does not stall it.

    Attributes:
        name: The phase.
        loss: Scalar before the gain, of this rank.
        observed: Scalars the objective wants logged, of this rank.
        replaced: How many gradient entries were not finite, after averaging over ranks.
        entries: How many gradient entries there were.
    """

    name: str
    loss: Tensor
    observed: Mapping[str, Tensor]
    replaced: Tensor
    entries: int


def due(phases: Sequence[Phase], step: int) -> tuple[Phase, ...]:
    """Return the phases of step number `step` (from 0); lazy phases wait for their first full interval."""
    return tuple(phase for phase in phases if phase.every == 1 or (step > 0 and step % phase.every == 0))


def train_step(
    phases: Sequence[Phase],
    *,
    players: Players,
    optimizers: Optimizers,
    batch_for: Callable[[Phase], Batch],
    ranks: Ranks,
) -> list[PhaseReport]:
    """Run `phases`, each on its own batch value (same images, fresh random streams)."""
    return [
        _run_phase(phase, players=players, optimizers=optimizers, batch=batch_for(phase), ranks=ranks)
        for phase in phases
    ]


def _run_phase(phase: Phase, *, players: Players, optimizers: Optimizers, batch: Batch, ranks: Ranks) -> PhaseReport:
    _hold_all_but(phase.trains, optimizers)
    optimizer = optimizers[phase.trains]
    optimizer.zero_grad(set_to_none=True)
    loss: Loss = phase.loss(players, batch)
    (loss.value * phase.gain).backward()
    replaced, entries = settle_gradients(_parameters(optimizer), ranks=ranks)
    optimizer.step()
    return PhaseReport(
        name=phase.name, loss=loss.value.detach(), observed=loss.observed, replaced=replaced, entries=entries
    )


def _hold_all_but(role: str, optimizers: Optimizers) -> None:
    """Let gradients reach the parameters of `role` alone; frozen ones are in no optimizer and stay as they are."""
    for owner, optimizer in optimizers.items():
        for parameter in _parameters(optimizer):
            parameter.requires_grad_(owner == role)


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def settle_gradients(parameters: Sequence[nn.Parameter], *, ranks: Ranks) -> tuple[Tensor, int]:
    """Average gradients over ranks, then replace what is not finite, in one flat buffer; count the replaced.

    A parameter without a gradient gets zeros, so that every rank reduces the same buffer and takes the same step.

    Returns:
        The number of replaced entries, a scalar tensor on the device, and the number of all entries.
    """
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    flat = torch.cat([parameter.grad.reshape(-1) for parameter in parameters])
    distributed.average(flat, ranks=ranks)
    replaced = flat.numel() - torch.isfinite(flat).sum()
    torch.nan_to_num_(flat, nan=_NOT_A_NUMBER, posinf=_POSITIVE, neginf=_NEGATIVE)
    start = 0
    for parameter in parameters:
        stop = start + parameter.numel()
        parameter.grad = flat[start:stop].view_as(parameter)
        start = stop
    return replaced, flat.numel()


def modules_in_training_mode(players: Players) -> None:
    """Put every player into training mode; frozen feature networks keep themselves in evaluation mode."""
    for player in players.values():
        player.train()
