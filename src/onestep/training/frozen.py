"""Frozen weights of a run in bfloat16: `frozen_precision: bfloat16` rounds them, and halves their memory.

Kernels and matrices of frozen copies of the teacher, and those that `freeze` names in the generator; trained weights,
averages and optimizers stay float32, and so do backbones of discriminators. What is trained fits the rounded weights,
so these are published beside it, not the teacher's own: in float32, which all readers take, with a note.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from onestep.config.run import Run
from onestep.networks import store_frozen_weights

if TYPE_CHECKING:
    from onestep.training.sources import Built


def store_frozen(built: Mapping[str, Built], *, frozen: Collection[str]) -> None:
    """Store the frozen weights of denoisers in bfloat16; those of the roles `frozen` are frozen as wholes.

    Raises:
        ValueError: They have no frozen weight that is stored.
    """
    if not sum(store_frozen_weights(each.network, every=role in frozen) for role, each in built.items()):
        found = "got bfloat16, expected none: no denoiser of the run has a frozen kernel or matrix"
        raise ValueError(f"frozen_precision: {found}. Fix: remove it, or freeze a level")


def as_published(tensors: Mapping[str, Tensor], run: Run) -> Mapping[str, Tensor]:
    """Return a network's tensors with those that are stored in bfloat16 as float32, the same numbers."""
    if run.frozen_precision is None:
        return tensors
    return {name: each.to(torch.float32) if each.dtype == torch.bfloat16 else each for name, each in tensors.items()}


def storage_note(run: Run) -> dict[str, Any]:
    """Return what a run's snapshots and summary state of its frozen weights; nothing where they are float32."""
    return {} if run.frozen_precision is None else {"frozen_precision": run.frozen_precision}
