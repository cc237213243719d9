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
        loss: Scalar before the gain, of this rank; a mean over its rows, however many passes they took.
        observed: Scalars the objective wants logged, of this rank; likewise.
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
    passes_for: Callable[[Phase], Sequence[Batch]],
    ranks: Ranks,
    views: Players | None = None,
) -> list[PhaseReport]:
    """Run `phases`, each on its own batch values (same images, fresh random streams).

    Args:
        phases: Those that are due.
        players: The networks by role.
        optimizers: One a trained role.
        passes_for: Returns this rank's rows for a phase, in the parts that pass the networks one after the other.
        ranks: This process among those of the run.
        views: The networks as they are given to phases that are not of second order: quicker, with the same weights.
            Default: as they are.
    """
    quick = players if views is None else views
    return [
        _run_phase(
            phase,
            players=players if phase.second_order else quick,
            optimizers=optimizers,
            passes=passes_for(phase),
            ranks=ranks,
        )
        for phase in phases
    ]


def _run_phase(
    phase: Phase, *, players: Players, optimizers: Optimizers, passes: Sequence[Batch], ranks: Ranks
) -> PhaseReport:
    _hold_all_but(phase.trains, optimizers)
    optimizer = optimizers[phase.trains]
    optimizer.zero_grad(set_to_none=True)
    loss = collect_gradients(phase, players=players, passes=passes, parameters=_parameters(optimizer))
    replaced, entries = settle_gradients(_parameters(optimizer), ranks=ranks)
    optimizer.step()
    return PhaseReport(name=phase.name, loss=loss.value, observed=loss.observed, replaced=replaced, entries=entries)


def collect_gradients(
    phase: Phase, *, players: Players, passes: Sequence[Batch], parameters: Sequence[nn.Parameter]
) -> Loss:
    """Add to `parameters` the gradients of the mean over the rows of all passes; return that mean, detached.

    A loss is a mean over the rows that it was given, so each pass counts by its share of the rows.
    Differs from the reference: it computes a number of passes, and runs one.
    """
    rows = sum(len(batch.images) for batch in passes)
    parts: list[Loss] = []
    for batch in passes:
        share = len(batch.images) / rows
        loss: Loss = phase.loss(players, batch)
        # Nothing but these: a penalty on slopes would work out a gradient of its images, too, for nobody.
        (loss.value * (phase.gain * share)).backward(inputs=parameters)
        observed = {name: value * share for name, value in loss.observed.items()}
        parts.append(Loss(value=loss.value.detach() * share, observed=observed))
    return Loss(
        value=sum(part.value for part in parts),
        observed={name: sum(part.observed[name] for part in parts) for name in parts[0].observed},
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
