"""One training step: the due phases in turn, each one optimizer step of one network"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from itertools import pairwise

import torch
from torch import Tensor, nn

from onestep import distributed
from onestep.distributed import Ranks
from onestep.objectives import Batch, Loss, Networks, Phase
from onestep.training.coupled import coupled_gradients
from onestep.training.execution import fastest_kernels
from onestep.training.optimizers import Optimizers, let_train
from onestep.training.sharding import leaves_of
from onestep.training.streams import CountedRows, Draw


@dataclass(frozen=True, kw_only=True)
class StepData:
    """This rank's images of one step; see `Batch`.

    Attributes:
        rows: Number of each image in the run.
        seed: Of the run.
        micro_batch: Largest number of images that pass through the networks at once; None for all.
        ahead: Numbers of the first draws of each phase, of all `rows`, made before they are requested.
        draws: What each phase has drawn for each row, once it ran.
        states: Of the coupled losses by phase, which the step replaces.
        pictures: See `Batch`.
    """

    images: Tensor
    condition: Tensor | None
    rows: Sequence[int]
    seed: int
    images_seen: int
    controls: Mapping[str, object] = field(default_factory=dict)
    micro_batch: int | None = None
    ahead: Mapping[str, Sequence[tuple[Draw, Tensor]]] = field(default_factory=dict)
    draws: dict[str, list[Draw]] = field(default_factory=dict)
    states: MutableMapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    pictures: Callable[[Tensor], Tensor] | None = None

    def batches(self, phase: str) -> list[Batch]:
        """Return the micro-batches of a phase, each with fresh random streams."""
        parts = micro_batches(len(self.rows), limit=self.micro_batch)
        streams = [self._streams_of(phase, part) for part in parts]
        self.draws[phase] = streams[0].draws
        return [
            Batch(
                images=self.images[part],
                condition=None if self.condition is None else self.condition[part],
                random=random,
                images_seen=self.images_seen,
                controls=self.controls,
                pictures=self.pictures,
            )
            for part, random in zip(parts, streams, strict=True)
        ]

    def _streams_of(self, phase: str, part: slice) -> CountedRows:
        ahead = [(draw, numbers[part]) for draw, numbers in self.ahead.get(phase, ())]
        return CountedRows(seed=self.seed, phase=phase, rows=self.rows[part], device=self.images.device, ahead=ahead)


def micro_batches(rows: int, *, limit: int | None) -> list[slice]:
    """Return the fewest slices of `rows` images with at most `limit` each, of nearly equal size."""
    count = 1 if limit is None else -(-rows // limit)
    return [slice(*edges) for edges in pairwise(rows * part // count for part in range(count + 1))]


@dataclass(frozen=True, kw_only=True)
class PhaseReport:
    """The result of one phase; tensors stay on the device, so that logging does not synchronize.

    Attributes:
        loss: Scalar before the gain; the mean over this rank's images, like the values of `observed`.
        replaced: Number of gradient entries that were not finite, after averaging over ranks.
        entries: Number of gradient entries.
    """

    name: str
    loss: Tensor
    observed: Mapping[str, Tensor]
    replaced: Tensor
    entries: int


def due(phases: Sequence[Phase], step: int) -> tuple[Phase, ...]:
    """Return the phases of step number `step`, from 0; one with `every` > 1 first runs after a full interval."""
    return tuple(phase for phase in phases if phase.every == 1 or (step > 0 and step % phase.every == 0))


def train_step(
    phases: Sequence[Phase],
    *,
    networks: Networks,
    optimizers: Optimizers,
    data: StepData,
    ranks: Ranks,
    wrapped: Networks | None = None,
) -> list[PhaseReport]:
    """Run the due `phases` on the same images, each with fresh random streams.

    Second-order phases receive `networks`, all others `wrapped` (`Execution.wrapped`); None for `networks`.
    """
    seen = networks if wrapped is None else wrapped
    with fastest_kernels(ranks.device):
        return [
            _take(each, networks if each.second_order else seen, optimizers=optimizers, data=data, ranks=ranks)
            for each in phases
        ]


def _take(phase: Phase, networks: Networks, *, optimizers: Optimizers, data: StepData, ranks: Ranks) -> PhaseReport:
    let_train(phase.trains, optimizers)
    optimizer = optimizers[phase.trains]
    parameters = optimizer.parameters
    optimizer.torch.zero_grad(set_to_none=True)
    if phase.coupled is None:
        loss = collect_gradients(phase, networks=networks, batches=data.batches(phase.name), parameters=parameters)
    else:
        loss = coupled_gradients(phase, networks=networks, data=data, parameters=parameters, ranks=ranks)
    replaced, entries = optimizer.shards.settle() if optimizer.shards else settle_gradients(parameters, ranks=ranks)
    optimizer.step(images_seen=data.images_seen)
    return PhaseReport(name=phase.name, loss=loss.value, observed=loss.observed, replaced=replaced, entries=entries)


def collect_gradients(
    phase: Phase, *, networks: Networks, batches: Sequence[Batch], parameters: Sequence[nn.Parameter]
) -> Loss:
    """Add the gradient of the mean loss over all micro-batches to `parameters`; return that mean, detached.

    A loss is a mean over its images, so each micro-batch is weighted by its share of the images.
    Differs from the reference: it computes the number of micro-batches, but runs one.
    """
    rows = sum(len(batch.images) for batch in batches)
    parts: list[Loss] = []
    for batch in batches:
        share = len(batch.images) / rows
        loss = phase.loss(networks, batch)
        # Restrict backward to the trained parameters; R1 would otherwise also compute unused image gradients.
        (loss.value * (phase.gain * share)).backward(inputs=leaves_of(parameters))
        observed = {name: value * share for name, value in loss.observed.items()}
        parts.append(Loss(value=loss.value.detach() * share, observed=observed))
    return Loss(
        value=reduce(torch.add, [part.value for part in parts]),
        observed={name: reduce(torch.add, [part.observed[name] for part in parts]) for name in parts[0].observed},
    )


def settle_gradients(parameters: Sequence[nn.Parameter], *, ranks: Ranks) -> tuple[Tensor, int]:
    """Average gradients over ranks, replace entries that are not finite, and return their and the whole number.

    A parameter without a gradient gets zeros, so that every rank reduces the same buffer and takes the same step. Each
    gradient has the memory layout of its parameter afterwards.
    """
    gradients = [_gradient(each) for each in parameters]
    # In the order of memory, which becomes that of the results: fused optimizers pair numbers by their address.
    flat = torch.cat([gradient.as_strided((gradient.numel(),), (1,)) for gradient in gradients])
    distributed.average(flat, ranks=ranks)
    replaced = flat.numel() - torch.isfinite(flat).sum()
    torch.nan_to_num_(flat, nan=0.0, posinf=1e5, neginf=-1e5)  # as in the reference
    parts = flat.split([each.numel() for each in parameters])
    for parameter, gradient, settled in zip(parameters, gradients, parts, strict=True):
        parameter.grad = settled.as_strided(gradient.shape, gradient.stride())
    return replaced, flat.numel()


def _gradient(parameter: nn.Parameter) -> Tensor:
    """Return a parameter's gradient in the memory layout of the parameter; zeros without one."""
    gradient = parameter.grad
    if gradient is None:
        return torch.zeros_like(parameter)
    if gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter).copy_(gradient)


def set_training_mode(networks: Mapping[str, nn.Module], *, phases: Sequence[Phase]) -> None:
    """Put the trained networks into training mode and all others into evaluation mode."""
    trained = {phase.trains for phase in phases}
    for role, network in networks.items():
        network.train(role in trained)
