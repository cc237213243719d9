"""A run's execution settings, checked against this machine."""

from __future__ import annotations

import importlib.util
import os
import shutil

import torch

from onestep.config.run import Run
from onestep.training.execution import Execution

_AMPERE = (8, 0)  # the first compute capability with bfloat16 and TF32


def execution_of(run: Run, *, device: torch.device) -> Execution:
    """Return a run's execution settings.

    Raises:
        ValueError: The device or this machine does not support them.
    """
    types = {"networks": run.precision.generator, "discriminators": run.precision.discriminator}
    execution = Execution(
        tf32=run.precision.tf32,
        bfloat16=frozenset(family for family, kind in types.items() if kind == "bfloat16"),
        networks=run.compile.networks,
        cuda_graphs=run.compile.cuda_graphs,
        fused_optimizer=run.compile.fused_optimizer,
        channels_last=run.compile.channels_last,
    )
    if problem := obstacle(execution, device=device):
        raise ValueError(f"{problem}. Fix: change the run's `precision:` or `compile:`")
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


def set_tf32(allowed: bool) -> None:
    """Allow or forbid TF32 in this process; it affects CUDA devices only."""
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed
