"""EMA of a network's trainable parameters; the half-life is given in images."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from onestep.distributed import own_part, own_parts


def ema_decay(images_seen: int, *, batch: int, half_life: float, ramp_up: float, power: float | None = None) -> float:
    """Return the weight of the old average in the update after a step of `batch` images over all ranks.

    `ramp_up` limits the half-life to a share of the images seen before the step, so that the average starts as a copy
    of the first step; 0 is no limit. `power` is the exponent of a profile instead (arXiv:2312.02696, section 3).
    """
    if power is not None:
        return (1 - batch / (images_seen + batch)) ** (power + 1)
    if ramp_up > 0:
        half_life = min(half_life, images_seen * ramp_up)
    return 0.5 ** (batch / max(half_life, 1e-8))


class MovingAverage:
    """The EMA of the parameters that require a gradient; frozen parameters and buffers are those of the network."""

    power: float | None = None  # exponent of a power-function profile, in place of the half-life

    def __init__(
        self, network: nn.Module, *, half_life: float, ramp_up: float = 0.0, target: nn.Module | None = None
    ) -> None:
        """Start as a copy of the network; for `ramp_up` see `ema_decay`.

        The parameters and buffers of `target`, a copy of the network, then hold the average; None for tensors apart.
        """
        self._network, self._target, self._half_life, self._ramp_up = network, target, half_life, ramp_up
        self._moving = {name: p for name, p in network.named_parameters() if p.requires_grad}
        if target is None:
            self._averages = {name: p.detach().clone() for name, p in self._moving.items()}
        else:
            parameters: dict[str, Tensor] = dict(target.requires_grad_(False).eval().named_parameters())
            self._averages = {name: parameters[name] for name in self._moving}

    @torch.no_grad()
    def update(self, *, images_seen: int, batch: int) -> None:
        """Average in the weights after a step of `batch` images that began at `images_seen`."""
        keep = ema_decay(images_seen, batch=batch, half_life=self._half_life, ramp_up=self._ramp_up, power=self.power)
        torch._foreach_lerp_(own_parts(self._averages), own_parts(self._moving), 1.0 - keep)
        if self._target is not None:
            for mine, current in zip(self._target.buffers(), self._network.buffers(), strict=True):
                mine.copy_(current)

    def published(self) -> dict[str, Tensor]:
        """Return the network's whole state dict with the averages in place of the trained parameters."""
        return {name: self._averages.get(name, value.detach()) for name, value in self._network.state_dict().items()}

    def state(self) -> Mapping[str, Tensor]:
        """Return the averages only, by parameter name; of a network in shards these are shards, too."""
        return self._averages

    @torch.no_grad()
    def restore(self, averages: Mapping[str, Tensor]) -> None:
        """Restore the result of `state`.

        Raises:
            ValueError: The names differ from those of the trained parameters.
        """
        if odd := sorted(set(averages) ^ set(self._averages)):
            raise ValueError(f"EMA: got other parameters than the network trains, first difference {odd[0]!r}")
        for name, value in averages.items():
            own_part(self._averages[name], self._averages[name]).copy_(own_part(self._averages[name], value))
