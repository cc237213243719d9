"""Numerical precision and torch.compile settings of a run, checked against this machine.

With every option off each operation is a torch kernel of its own in float32, TF32 off: the reference's numbers.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from onestep.arithmetic import deterministic, products
from onestep.config.run import Run
from onestep.networks import execution_view
from onestep.objectives import Networks

_AMPERE = (8, 0)  # the first compute capability with bfloat16 and TF32
_FAMILIES = {"generator": "networks", "discriminator": "discriminators"}  # by key of `precision:`


@dataclass(frozen=True, kw_only=True)
class Execution:
    """The options of `precision:` and `compile:`, all off by default; second-order phases use TF32 only.

    See `Precision` and `Compile` in config/run.py.

    Attributes:
        bfloat16: Families whose networks run in bfloat16; parameters and their updates stay float32.
    """

    tf32: bool = False
    bfloat16: frozenset[str] = frozenset()
    networks: bool = False
    cuda_graphs: bool = False
    fused_optimizer: bool = False
    channels_last: bool = False
    deterministic: bool = False

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """Train inside the block with the run's TF32 and algorithms; ValueError as of `onestep.arithmetic`."""
        with products(tf32=self.tf32), deterministic(self.deterministic):
            yield

    def begin_step(self) -> None:
        """Let CUDA graphs overwrite their previous outputs."""
        if self.cuda_graphs:
            torch.compiler.cudagraph_mark_step_begin()

    def lay_out(self, networks: Mapping[str, nn.Module], *, families: Mapping[str, str]) -> None:
        """Give denoisers their memory layout, which averages, gradients and moments of an optimizer take over.

        Call this before they are built: kernels that go through several tensors at once need one layout of all.
        """
        for role, network in networks.items():
            if self.channels_last and families[role] == "networks":
                network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def wrapped(
        self,
        networks: Mapping[str, nn.Module],
        *,
        families: Mapping[str, str],
        averages: Collection[str] = (),
        compiler: Callable[[Any], Any] | None = None,
    ) -> Networks:
        """Return the networks by role as first-order phases call them, with the same weights.

        Frozen weights must be final, and trained parameters require a gradient; those of the roles `averages` change
        without one. `families` has the family folder of each role, and `compiler` takes the place of torch's.
        """
        return {
            role: execution_view(
                network,
                bfloat16=families[role] in self.bfloat16,
                compiled=compiler or self._compiled,
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


def execution_of(run: Run, *, device: torch.device) -> Execution:
    """Return a run's execution settings.

    Raises:
        ValueError: The device or this machine does not support them.
    """
    half = frozenset(family for role, family in _FAMILIES.items() if getattr(run.precision, role) == "bfloat16")
    execution = Execution(tf32=run.precision.tf32, bfloat16=half, **vars(run.compile))
    if problem := obstacle(execution, device=device):
        raise ValueError(f"{problem}. Fix: change the run's `precision:`, `compile:` or `fast:`")
    return execution


def obstacle(execution: Execution, *, device: torch.device) -> str | None:
    """Return the reason why a device does not support these settings, or None."""
    on_cuda = device.type == "cuda"
    if not on_cuda and execution.cuda_graphs:
        return "compile.cuda_graphs: got true, expected false on a CPU"
    if not on_cuda and execution.tf32:
        return "precision.tf32: got true, expected false on a CPU"
    if execution.cuda_graphs and not execution.networks:
        return "compile.cuda_graphs: got true, expected false without compile.networks: true"
    if execution.networks and not _can_compile(on_cuda=on_cuda):
        return f"compile.networks: got true, expected {'triton' if on_cuda else 'a C++ compiler such as g++'}"
    is_old = on_cuda and torch.cuda.get_device_capability(device) < _AMPERE
    if is_old and (execution.tf32 or execution.bfloat16):
        return f"precision: got TF32 or bfloat16, expected float32 on {torch.cuda.get_device_name(device)}"
    return None


def _can_compile(*, on_cuda: bool) -> bool:
    if on_cuda:
        return importlib.util.find_spec("triton") is not None
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++"))


def arithmetic_of(execution: Execution, *, asked: Execution) -> dict[str, Any]:
    """Return the arithmetic of a training as its summary has it under `arithmetic`.

    It is empty for float32 with nothing else `asked`, as are the summaries of earlier versions.
    """
    if not (asked.tf32 or asked.bfloat16 or asked.deterministic):
        return {}
    halves = {role: family in execution.bfloat16 for role, family in _FAMILIES.items()}
    types = {role: "bfloat16" if is_half else "float32" for role, is_half in halves.items()}
    return {"arithmetic": {"tf32": execution.tf32, **types, "deterministic": execution.deterministic}}


@contextlib.contextmanager
def fastest_kernels(device: torch.device) -> Iterator[None]:
    """Let cuDNN choose its kernels by their time inside the block, once for each shape; a training has few.

    EDM's training script does the same. The choice may differ between two starts, and with it the rounding; where
    torch uses deterministic algorithms, there is none.
    """
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = device.type == "cuda" and not torch.are_deterministic_algorithms_enabled()
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def device_name(device: torch.device) -> str:
    """Return the name of a GPU, or the number of threads of a CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
