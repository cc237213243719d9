"""Moving average of a network's trainable parameters, with a half-life counted in images."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def ema_decay(images_seen: int, *, batch: int, half_life: float, ramp_up: float) -> float:
    """Return the share of the old average that one step keeps.

    Args:
        images_seen: Images before this step; the half-life never exceeds `ramp_up` times this number.
        batch: Images of this step, over all ranks.
        half_life: Images after which a parameter's weight has halved.
        ramp_up: The limit's ratio; 0 switches the limit off.

    Returns:
        A number in [0, 1]; 0 on the first step, so that the average starts as a copy.
    """
    if ramp_up > 0:
        half_life = min(half_life, images_seen * ramp_up)
    return 0.5 ** (batch / max(half_life, 1e-8))


class MovingAverage:
    """The average of what moves in a network; frozen parameters and buffers are taken from the network itself."""

    def __init__(self, network: nn.Module, *, half_life: float, ramp_up: float) -> None:
        self._network = network
        self._half_life = half_life
        self._ramp_up = ramp_up
        self._moving = {name: p for name, p in network.named_parameters() if p.requires_grad}
        self._averages = {name: p.detach().clone() for name, p in self._moving.items()}

    @torch.no_grad()
    def update(self, *, images_seen: int, batch: int) -> None:
        """Take in the network after a step that began at `images_seen`."""
        keep = ema_decay(images_seen, batch=batch, half_life=self._half_life, ramp_up=self._ramp_up)
        torch._foreach_lerp_(list(self._averages.values()), list(self._moving.values()), 1.0 - keep)

    def published(self) -> dict[str, Tensor]:
        """Return the network's whole state dict with averages in place of what moved."""
        return {name: self._averages.get(name, value.detach()) for name, value in self._network.state_dict().items()}

    def state(self) -> Mapping[str, Tensor]:
        """Return the averages alone, by parameter name."""
        return self._averages

    @torch.no_grad()
    def restore(self, averages: Mapping[str, Tensor]) -> None:
        """Put back what `state` returned.

        Raises:
            ValueError: The names differ from those of the network's trainable parameters.
        """
        if set(averages) != set(self._averages):
            odd = sorted(set(averages) ^ set(self._averages))
            raise ValueError(
                f"moving average of other parameters than the network trains, first difference: {odd[0]!r}"
            )
        for name, value in averages.items():
            self._averages[name].copy_(value)
