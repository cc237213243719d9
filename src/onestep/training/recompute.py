"""Activation checkpointing of a run: `recompute: true` saves memory and changes no number."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn


def recompute_activations(networks: Mapping[str, nn.Module]) -> None:
    """Let the backward pass compute activations again in each submodule that can: memory for work, the same numbers.

    Raises:
        ValueError: None can.
    """
    able = [part for network in networks.values() for part in network.modules() if hasattr(part, "recompute")]
    if not able:
        expected = "expected false: none of its networks has a part with an attribute `recompute`"
        raise ValueError(f"recompute: got true, {expected} (see onestep/networks/__init__.py). Fix: remove it")
    for part in able:
        part.recompute = True  # type: ignore[assignment]
