"""Numerical precision and torch.compile settings of a run.

With every option off each operation is a torch kernel of its own in float32, TF32 off: the reference's numbers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from onestep.networks import execution_view
from onestep.objectives import Networks


@dataclass(frozen=True, kw_only=True)
class Execution:
    """The options of `precision:` and `compile:`, all off by default; second-order phases use TF32 only.

    Attributes:
        tf32: Whether CUDA devices may round the factors of float32 products to 10 bits.
        bfloat16: Families whose networks run in bfloat16; parameters and their updates stay float32.
        networks: Whether torch.compile generates the kernels of networks and of frozen features.
        cuda_graphs: Whether these kernels are recorded and replayed as CUDA graphs.
        fused_optimizer: Whether an optimizer step is one kernel.
        channels_last: Whether denoisers compute with channels innermost; frozen features always do.
    """

    tf32: bool = False
    bfloat16: frozenset[str] = frozenset()
    networks: bool = False
    cuda_graphs: bool = False
    fused_optimizer: bool = False
    channels_last: bool = False

    def begin_step(self) -> None:
        """Let CUDA graphs overwrite their previous outputs."""
        if self.cuda_graphs:
            torch.compiler.cudagraph_mark_step_begin()

    def wrapped(
        self, networks: Mapping[str, nn.Module], *, families: Mapping[str, str], averages: Collection[str] = ()
    ) -> Networks:
        """Return the networks as first-order phases call them, with the same weights.

        Args:
            networks: By role, with their final frozen weights; trained parameters require a gradient.
            families: Family folder by role.
            averages: Roles whose parameters change without a gradient.
        """
        return {
            role: execution_view(
                network,
                bfloat16=families[role] in self.bfloat16,
                channels_last=self.channels_last,
                compiled=self._compiled,
                is_constant=role not in averages,
            )
            for role, network in networks.items()
        }

    @property
    def _compiled(self) -> Callable[[Any], Any]:
        if not self.networks:
            return lambda function: function
        # Batches have few sizes; kernels for any size would be slower.
        mode = "reduce-overhead" if self.cuda_graphs else None
        return functools.partial(torch.compile, dynamic=False, mode=mode)
