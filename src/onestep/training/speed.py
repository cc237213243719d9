"""How a run computes what its equations say: in which number types, and who carries the operations out.

With nothing switched on, every operation is a torch kernel of its own in float32, TF32 off: the reference's numbers.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from onestep.discriminators._views import view_of
from onestep.networks import cast_once
from onestep.objectives import Players

_AMPERE = (8, 0)  # the first with bfloat16 and TF32


@dataclass(frozen=True, kw_only=True)
class Speed:
    """The named options of `precision:` and `compile:`, all off by default.

    Phases that differentiate a gradient see none of them but TF32.

    Attributes:
        tf32: Whether CUDA devices may round the factors of float32 products to 10 bits.
        half_generator: Whether the generator's image path runs in bfloat16; weights, embedding, group norms and the
            softmax of its attention stay float32.
        half_discriminator: Whether frozen features and the heads' convolutions run in bfloat16.
        networks: Whether torch.compile writes the kernels of the generator (or classifier) and of the frozen features,
            forward and backward.
        cuda_graphs: Whether these are recorded as CUDA graphs and replayed, which spares their launches.
        fused_optimizer: Whether an optimizer's step is one kernel.
        channels_last: Whether the generator computes with channels innermost; the frozen features always do.
    """

    tf32: bool = False
    half_generator: bool = False
    half_discriminator: bool = False
    networks: bool = False
    cuda_graphs: bool = False
    fused_optimizer: bool = False
    channels_last: bool = False

    def begin_step(self) -> None:
        """Tell CUDA graphs that what they returned so far is no longer needed."""
        if self.cuda_graphs:
            torch.compiler.cudagraph_mark_step_begin()


def speed_of(document: Mapping[str, Any], *, device: torch.device) -> Speed:
    """Return what a run's document asks for.

    Raises:
        ValueError: The device, or this machine, cannot.
    """
    precision, execution = document.get("precision") or {}, document.get("compile") or {}
    speed = Speed(
        tf32=precision.get("tf32", False),
        half_generator=precision.get("generator") == "bfloat16",
        half_discriminator=precision.get("discriminator") == "bfloat16",
        **execution,
    )
    if problem := obstacle(speed, device=device):
        raise ValueError(f"{problem}; choose otherwise in the run's `precision:` and `compile:`")
    return speed


def obstacle(speed: Speed, *, device: torch.device) -> str | None:
    """Return why `speed` cannot be had on a device, in words; None where it can."""
    if device.type != "cuda" and speed.cuda_graphs:
        return "compile.cuda_graphs: true needs a CUDA device, and this process computes on the CPU"
    if device.type != "cuda" and speed.tf32:
        return "precision.tf32: true needs a CUDA device, and this process computes on the CPU"
    if speed.cuda_graphs and not speed.networks:
        return "compile.cuda_graphs: true needs networks: true, because compiled networks are what is recorded"
    if speed.networks and not _can_compile(device):
        return "compile.networks: true needs " + ("triton" if device.type == "cuda" else "a C++ compiler, such as g++")
    is_old = device.type == "cuda" and torch.cuda.get_device_capability(device) < _AMPERE
    if is_old and (speed.tf32 or speed.half_generator or speed.half_discriminator):
        return f"TF32 and bfloat16 need an Ampere GPU or a newer one, and this is {torch.cuda.get_device_name(device)}"
    return None


def _can_compile(device: torch.device) -> bool:
    if device.type == "cuda":
        return importlib.util.find_spec("triton") is not None
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++"))


def set_tf32(allowed: bool) -> None:
    """Allow or forbid TF32 in this process; only CUDA devices have it."""
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def views_of(players: Players, *, speed: Speed) -> Players:
    """Return the networks as phases see them that take first derivatives alone; they compute with the same weights.

    To be called when weights are final, as far as they are frozen, and trainable ones require a gradient.
    """
    compiled = _compiler(speed)
    views: dict[str, Any] = {}
    for role, player in players.items():
        if role == "discriminator":
            views[role] = view_of(player, half=speed.half_discriminator, compiled=compiled)
        elif role == "generator":
            views[role] = compiled(_quick_generator(player, speed=speed))
        else:
            views[role] = compiled(player)
    return views


def _compiler(speed: Speed) -> Callable[[Callable], Callable]:
    if not speed.networks:
        return lambda function: function
    # Batches have few sizes; kernels for any size would be slower.
    mode = "reduce-overhead" if speed.cuda_graphs else None
    return functools.partial(torch.compile, dynamic=False, mode=mode)


def _quick_generator(generator: nn.Module, *, speed: Speed) -> nn.Module:
    """Set the generator's type and layout, which no state dict shows."""
    generator.image_type = torch.bfloat16 if speed.half_generator else torch.float32
    if speed.half_generator:
        cast_once(generator, dtype=torch.bfloat16)
    if speed.channels_last:
        generator.to(memory_format=torch.channels_last)
    return generator
