"""Energy by spatial frequency of the maps of a block, and of their change from step to step of a trajectory.

Legend: T steps, K rings of wave numbers 0..H/2 in cycles per image, H the side of a map. The definitions are ours: the
paper names D_FFT(O_t, O_t-1) without a formula.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_LEAST_AMPLITUDE = 1e-12


def ring_of(side: int) -> np.ndarray:
    """Return the ring of each wave number of a map, int64 [H, H]: floor(sqrt(ky^2 + kx^2) + 1/2)."""
    waves = np.fft.fftfreq(side, d=1 / side)
    return np.floor(np.hypot(waves[:, None], waves[None, :]) + 0.5).astype(np.int64)


def ring_counts(side: int) -> np.ndarray:
    """Return the number of wave numbers of each ring, int64 [H/2 + 1]; the corners beyond H/2 are left out."""
    return np.bincount(ring_of(side).ravel())[: side // 2 + 1]


def ring_means(maps: np.ndarray) -> np.ndarray:
    """Return the mean over each ring of maps [..., H, H], float64 [..., H/2 + 1]."""
    side = maps.shape[-1]
    ring, flat = ring_of(side).ravel(), maps.reshape(-1, side * side)
    sums = np.stack([np.bincount(ring, weights=each, minlength=ring.max() + 1) for each in flat])
    means = sums[:, : side // 2 + 1] / ring_counts(side)
    return means.reshape(*maps.shape[:-2], side // 2 + 1)


def shares(energy: np.ndarray, *, side: int) -> np.ndarray:
    """Return the part of the energy in each ring from 1 on, [..., H/2], of ring means [..., H/2 + 1]; 0 of nothing."""
    return _normalised(energy * ring_counts(side))


def change_shares(change: np.ndarray) -> np.ndarray:
    """Return the part of a change in each ring from 1 on, where each ring counts once; see `shares`."""
    return _normalised(change)


def _normalised(values: np.ndarray) -> np.ndarray:
    kept = values[..., 1:]
    total = kept.sum(axis=-1, keepdims=True)
    return np.divide(kept, total, out=np.zeros_like(kept), where=total > 0)


def centroids(share: np.ndarray) -> np.ndarray:
    """Return the mean of k / (H/2) over the shares [..., H/2], in (0, 1]; 0 where there is no energy."""
    rings = share.shape[-1]
    return share @ (np.arange(1, rings + 1) / rings)


def high_shares(share: np.ndarray) -> np.ndarray:
    """Return the share of the rings with k / (H/2) above 1/2."""
    rings = share.shape[-1]
    return share[..., np.arange(1, rings + 1) / rings > 0.5].sum(axis=-1)


def log_amplitudes(power: np.ndarray) -> np.ndarray:
    """Return the logarithm of the ring mean of the root of power [..., H, H]."""
    return np.log(ring_means(np.sqrt(power)) + _LEAST_AMPLITUDE)


def total_variation(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return half the sum of |one - other| over the last axis: 0 for equal shares, 1 for shares without overlap."""
    return np.abs(one - other).sum(axis=-1) / 2


@dataclass(frozen=True, kw_only=True)
class Spectrum:
    """What a place of a network shows along a trajectory.

    Attributes:
        power: Mean over images and channels of |FFT2(O)|^2 (orthonormal), float64 [T, H, H].
        change: The same of the difference to the step before, [T - 1, H, H].
    """

    power: np.ndarray
    change: np.ndarray

    @property
    def d_fft(self) -> np.ndarray:
        """E_i(k), the ring means of the change, [T - 1, K]."""
        return ring_means(self.change)

    @property
    def share(self) -> np.ndarray:
        """The part of each step's change in each ring from 1 on, [T - 1, K - 1]."""
        return shares(self.d_fft, side=self.change.shape[-1])

    @property
    def output_share(self) -> np.ndarray:
        """The part of each step's energy in each ring from 1 on, [T, K - 1]."""
        return shares(ring_means(self.power), side=self.power.shape[-1])

    @property
    def log_change(self) -> np.ndarray:
        """|log A_i(k) - log A_(i-1)(k)|, [T - 1, K], of the ring means A of the root of power."""
        return np.abs(np.diff(log_amplitudes(self.power), axis=0))


class PowerMaps:
    """Sums of the power of maps and of their changes, added up batch by batch.

    Of a batch it keeps the maps of one step, which those of the next are compared with.
    """

    def __init__(self, *, steps: int) -> None:
        self._steps = steps
        self._before: Tensor | None = None
        self._sums: Tensor | None = None  # [2, T, H, H]: of power, of change
        self._maps = 0

    def see(self, step: int, value: Tensor) -> None:
        """Add the maps [B, C, H, H] of a step; the steps of a batch are in order, from 0."""
        maps = value.detach().to(torch.float64)
        if self._sums is None:
            self._sums = torch.zeros(2, self._steps, *maps.shape[-2:], dtype=torch.float64, device=maps.device)
        self._sums[0, step] += _power(maps)
        if step == 0:
            self._maps += maps.shape[0] * maps.shape[1]
        else:
            assert self._before is not None, "the steps of a batch are in order"
            self._sums[1, step] += _power(maps - self._before)
        # In the type of the network, which has half the bytes; a copy, because a network may change its maps in place.
        self._before = value.detach().clone() if step + 1 < self._steps else None

    @property
    def spectrum(self) -> Spectrum:
        """The means over all images and channels."""
        assert self._sums is not None, "nothing was seen"
        power, change = (self._sums / self._maps).cpu().numpy()
        return Spectrum(power=power, change=change[1:])


def _power(maps: Tensor) -> Tensor:
    """Return the sum over images and channels of |FFT2|^2, [H, H]."""
    parts = torch.view_as_real(torch.fft.fft2(maps, norm="ortho"))
    return parts.square().sum(dim=(0, 1, 4))
