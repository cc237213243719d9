"""Phases with a coupled loss: its gradient in two passes, and its state from the start of a run on."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from onestep import distributed
from onestep.coupling import Coupled, CoupledLoss, Start, Vectors
from onestep.distributed import Ranks
from onestep.objectives import Batch, Loss, Networks, Phase
from onestep.progress import patient
from onestep.training.latents import decoder_of, images_of, posterior_numbers
from onestep.training.sharding import leaves_of
from onestep.training.stopping import never
from onestep.training.streams import CountedRows

if TYPE_CHECKING:
    from onestep.training.assembly import Training
    from onestep.training.step import StepData

_ROWS = 64  # images of one call before the first step, or all if they are fewer: it is the same for any micro-batch


def coupled_gradients(
    phase: Phase, *, networks: Networks, data: StepData, parameters: Sequence[nn.Parameter], ranks: Ranks
) -> Loss:
    """Add the gradient of a coupled loss to `parameters`, update its state, and return the loss, detached.

    Features are computed without a gradient first, and again with the same random numbers for the way back; only once
    where one pass has all images. Gradients are averaged over ranks later, hence the factor `ranks.world`.
    """
    coupled, batches = phase.coupled, data.batches(phase.name)
    assert coupled is not None, "a phase with a coupled loss"
    is_whole = ranks.world == 1 and len(batches) == 1
    if is_whole:
        parts = [coupled.features(networks, batches[0])]
    else:
        generators = _generators(ranks.device)
        with torch.no_grad():
            parts = [coupled.features(networks, batch) for batch in batches]
        _restore(generators, ranks.device)
        batches = data.batches(phase.name)
    names = sorted(parts[0])
    every = {name: _of_all_ranks(torch.cat([part[name].detach() for part in parts]), ranks=ranks) for name in names}
    loss, gradients = _loss_and_gradients(coupled, every, data.states[phase.name])
    if _are_finite(every) and _are_finite(loss.state):
        data.states[phase.name] = {**data.states[phase.name], **loss.state}
    own = {name: (phase.gain * ranks.world) * each[ranks.rank :: ranks.world] for name, each in gradients.items()}
    first = 0
    for batch in batches:
        rows = slice(first, first := first + len(batch.images))
        features = parts[0] if is_whole else coupled.features(networks, batch)
        trained = [name for name in names if features[name].requires_grad]  # not features of real images
        grads = [own[name][rows].to(features[name].dtype) for name in trained]
        torch.autograd.backward([features[name] for name in trained], grads, inputs=leaves_of(parameters))
    return Loss(value=loss.value.to(torch.float32), observed=loss.observed)


def _of_all_ranks(rows: Tensor, *, ranks: Ranks) -> Tensor:
    """Return the rows of all ranks in the order of the run's images, of which rank r has each world-th from r on."""
    if ranks.world == 1:
        return rows
    return torch.stack(distributed.gather(rows, ranks=ranks), dim=1).flatten(0, 1).to(rows.device)


def _loss_and_gradients(
    coupled: Coupled, features: Vectors, state: Mapping[str, Tensor]
) -> tuple[CoupledLoss, dict[str, Tensor]]:
    """Return a coupled loss, detached, and its gradients by name; all NaN where a feature is not finite."""
    if not _are_finite(features):
        nowhere = {name: torch.full_like(each, torch.nan) for name, each in features.items()}
        return CoupledLoss(value=next(iter(nowhere.values())).sum()), nowhere
    leaves = {name: each.detach().requires_grad_() for name, each in features.items()}
    with torch.enable_grad():
        found = coupled.loss(leaves, state)
    gradients = torch.autograd.grad(found.value, list(leaves.values()), materialize_grads=True)
    kept = {name: each.detach() for name, each in found.state.items()}
    observed = {name: each.detach() for name, each in found.observed.items()}
    loss = CoupledLoss(value=found.value.detach(), observed=observed, state=kept)
    return loss, dict(zip(leaves, gradients, strict=True))


def _are_finite(tensors: Mapping[str, Tensor]) -> bool:
    return all(bool(torch.isfinite(each).all().cpu()) for each in tensors.values())


def _generators(device: torch.device) -> list[Tensor]:
    """Return the states of the generators that dropout uses."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def _restore(generators: Sequence[Tensor], device: torch.device) -> None:
    torch.set_rng_state(generators[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(generators[1], device)


def begin_states(
    training: Training, *, ranks: Ranks, most: int | None = None, stop: Callable[[], bool] = never
) -> None:
    """Make the states of a run's coupled losses, with its networks as they are; every rank must call this.

    With `most`, features of so many images are repeated where more are requested: enough to measure a step.

    Raises:
        Left: A rank received a request to stop; nothing is kept.
    """
    coupled = {phase.name: phase.coupled for phase in training.phases if phase.coupled is not None}
    if not coupled:
        return
    modes = {role: network.training for role, network in training.networks.items()}
    for network in training.networks.values():
        network.eval()
    with training.execution.computing(), torch.no_grad():
        for name, each in coupled.items():
            collect = functools.partial(_collect, training, name, ranks=ranks, most=most, stop=stop)
            start = Start(images=len(training.pixels), batch=training.run.batch, collect=collect)
            made = {key: value.to(ranks.device).contiguous() for key, value in each.start(start).items()}
            distributed.broadcast(made.values(), ranks=ranks)
            training.states[name] = made
    for role, network in training.networks.items():
        network.train(modes[role])


def _collect(
    training: Training,
    phase: str,
    function: Callable[[Networks, Batch], Vectors],
    *,
    images: int,
    stream: str,
    ranks: Ranks,
    most: int | None,
    stop: Callable[[], bool],
) -> Vectors:
    """Return the results of a function for images of the dataset; see `onestep.coupling.Collect`."""
    order = np.random.default_rng(training.run.seed).permutation(len(training.pixels))
    computed = images if most is None else min(images, most)
    size = min(_ROWS, computed)
    rounds = -(-computed // (size * ranks.world))
    parts: dict[str, list[Tensor]] = {}
    desc, is_shown = f"{training.name}: before the first step, {stream}", ranks.rank == 0 and most is None
    with patient(name=desc, total=computed, shown=is_shown) as progress:
        for part in range(ranks.rank, rounds * ranks.world, ranks.world):
            if distributed.highest(int(stop()), ranks=ranks):
                raise distributed.Left
            rows = range(part * size, (part + 1) * size)
            indices = torch.from_numpy(order[np.asarray(rows) % len(order)])
            conditions, stored = training.conditions, training.pixels[indices]
            normal = posterior_numbers(
                training.codec, stored, seed=training.run.seed, rows=rows, stream=f"/{phase}/{stream}"
            )
            normal = None if normal is None else normal.to(ranks.device)
            batch = Batch(
                images=images_of(training.codec, stored.to(ranks.device), normal),
                condition=None if conditions is None else conditions[indices].to(ranks.device),
                random=CountedRows(seed=training.run.seed, phase=f"{phase}/{stream}", rows=rows, device=ranks.device),
                images_seen=0,
                pictures=decoder_of(training.codec),
            )
            for name, each in function(training.networks, batch).items():
                parts.setdefault(name, []).append(each)
            progress.update(size * ranks.world)
    # Of each round, the parts of all ranks in their order; what is beyond `computed` has filled the last round.
    stacked = {name: _of_all_ranks(torch.stack(each), ranks=ranks) for name, each in sorted(parts.items())}
    found = {name: each.flatten(0, 1)[:computed] for name, each in stacked.items()}
    if computed == images:
        return found
    return {name: each[torch.arange(images, device=each.device) % computed] for name, each in found.items()}


def tensors_of(states: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the states of coupled losses by `PHASE.NAME`."""
    return {f"{phase}.{name}": value for phase, state in states.items() for name, value in state.items()}


def states_of(tensors: Mapping[str, Tensor], *, device: torch.device) -> dict[str, Mapping[str, Tensor]]:
    """Return the states of the result of `tensors_of`."""
    states: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        phase, _, name = key.rpartition(".")
        states.setdefault(phase, {})[name] = value.to(device, copy=True)
    return dict(states)


def check_states(states: Mapping[str, Mapping[str, Tensor]], *, ranks: Ranks) -> None:
    """Compare the states of coupled losses over the ranks, which must all call this; ValueError where they differ."""
    for name, value in tensors_of(states).items() if ranks.world > 1 else ():
        words = value.contiguous().flatten().view(torch.int32)  # of 4 or 8 bytes a number
        found = distributed.gather(words.sum(dtype=torch.int64), ranks=ranks)
        if any(not torch.equal(each, found[0]) for each in found):
            fix = "Fix: GPUs of one kind in a job, or start again from the last state"
            raise ValueError(f"{name}: got another state of the loss on each rank, expected one. {fix}")
