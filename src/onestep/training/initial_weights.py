"""The weights that a generator starts from: `init` of a run."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from onestep.config.freezing import matches
from onestep.config.starts import Initialisation
from onestep.networks import teacher_weights_for


def initialise(
    network: nn.Module, init: Initialisation | None, *, weights: Mapping[str, Tensor] | None, seed: int
) -> None:
    """Load a generator's initial weights; those of `network` now are fresh ones, drawn with the run's seed.

    Args:
        network: The generator.
        init: The run's `init`; None loads `weights` as they are.
        weights: Tensors of a teacher or of another network of this architecture; None keeps all fresh weights.
        seed: Of the run.

    Raises:
        ValueError: A pattern matches no parameter, or `weights` are those of another architecture.
    """
    kept = {} if init is None else _redrawn(network, init)
    if weights is None:
        return
    if init is not None and init.is_named:
        try:
            chosen = teacher_weights_for(network, weights)
        except ValueError as error:
            found = str(error).removeprefix("teacher: ")
            raise ValueError(f"init.from: {init.source}: {found}. Fix: name a network of this architecture") from error
    else:
        chosen = teacher_weights_for(network, weights)
    if init is not None and init.shuffle:
        names = [name for name, _ in network.named_parameters()]
        chosen |= {name: shuffled(name, chosen[name], seed=seed) for name in names}
    network.load_state_dict({**chosen, **kept}, strict=True)


def _redrawn(network: nn.Module, init: Initialisation) -> dict[str, Tensor]:
    """Return copies of the fresh tensors that a run keeps. ValueError: A pattern matches none."""
    parameters = {name: each.detach() for name, each in network.named_parameters()}
    for pattern in init.redraw:
        if not any(matches(name, [pattern]) for name in parameters):
            expected = "expected a pattern of parameter names, such as model.map_layer*"
            raise ValueError(f"init.redraw: got {pattern!r}, which matches no parameter of the network, {expected}")
    return {name: each.clone() for name, each in parameters.items() if matches(name, init.redraw)}


def shuffled(name: str, tensor: Tensor, *, seed: int) -> Tensor:
    """Return a tensor with its entries permuted, by the seed of the run and the name of the tensor alone."""
    key = np.array([seed, zlib.crc32(f"shuffle {name}".encode())], dtype=np.uint64)
    order = np.random.Generator(np.random.Philox(key=key)).permutation(tensor.numel())
    return tensor.flatten()[torch.from_numpy(order)].view_as(tensor)
