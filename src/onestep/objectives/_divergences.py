"""f-divergences of the data from the generator, by what each needs of the log density ratio.

With r = p/q, p of the data and q of the generator, D_f = E_q[f(r)], f(1) = 0. Its gradient with respect to generated
images is that of E_q[phi(l)] with the function l = log r held fixed, phi' = -h and h(r) = r^2 f''(r) (f-distill,
arXiv:2502.15681, for the weights h; f and phi follow from them).

| name                | f(r)                             | h(r)        | phi(l)       | also known as           |
|---------------------|----------------------------------|-------------|--------------|-------------------------|
| reverse_kl          | -ln r                            | 1           | -l           |                         |
| forward_kl          | r ln r                           | r           | -e^l         |                         |
| jensen_shannon      | r ln r - (r + 1) ln((r + 1) / 2) | r / (1 + r) | -softplus(l) | saturating GAN loss     |
| softened_reverse_kl | (r + 1) ln(1/2 + 1 / (2 r))      | 1 / (1 + r) | softplus(-l) | non-saturating GAN loss |
| hellinger           | 1 - sqrt(r)                      | sqrt(r) / 4 | -e^(l/2) / 2 |                         |
| jeffreys            | (r - 1) ln r                     | 1 + r       | -l - e^l     |                         |
| neyman              | (r - 1)^2 / (2 r)                | 1 / r       | e^-l         |                         |

`reverse_kl` with two fitted scores in the place of grad l is Diff-Instruct (arXiv:2305.18455).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

DivergenceName: TypeAlias = Literal[
    "reverse_kl", "forward_kl", "jensen_shannon", "softened_reverse_kl", "hellinger", "jeffreys", "neyman"
]


@dataclass(frozen=True)
class Divergence:
    """The functions of a divergence: `f` and `h` of ratios, `phi` of log ratios; of tensors of any shape."""

    f: Callable[[Tensor], Tensor]
    h: Callable[[Tensor], Tensor]
    phi: Callable[[Tensor], Tensor]


# Functions of torch are called inside lambdas, because a login node without it reads the names.
DIVERGENCES: Mapping[str, Divergence] = {
    "reverse_kl": Divergence(f=lambda r: -r.log(), h=lambda r: torch.ones_like(r), phi=lambda log_r: -log_r),
    "forward_kl": Divergence(f=lambda r: r * r.log(), h=lambda r: r, phi=lambda log_r: -log_r.exp()),
    "jensen_shannon": Divergence(
        f=lambda r: r * r.log() - (r + 1) * ((r + 1) / 2).log(),
        h=lambda r: r / (1 + r),
        phi=lambda log_r: -F.softplus(log_r),
    ),
    "softened_reverse_kl": Divergence(
        f=lambda r: (r + 1) * (1 / 2 + 1 / (2 * r)).log(), h=lambda r: 1 / (1 + r), phi=lambda log_r: F.softplus(-log_r)
    ),
    "hellinger": Divergence(
        f=lambda r: 1 - r.sqrt(), h=lambda r: r.sqrt() / 4, phi=lambda log_r: -(log_r / 2).exp() / 2
    ),
    "jeffreys": Divergence(f=lambda r: (r - 1) * r.log(), h=lambda r: 1 + r, phi=lambda log_r: -log_r - log_r.exp()),
    "neyman": Divergence(f=lambda r: (r - 1).square() / (2 * r), h=lambda r: 1 / r, phi=lambda log_r: (-log_r).exp()),
}


@dataclass(frozen=True, kw_only=True)
class Normalisation:
    """f-distill's normalisation of ratios by noise level and of their weights (arXiv:2502.15681; NVlabs/FastGen).

    A ratio is divided by an EMA of the ratios in its bin of noise levels, of `bins` of equal width between `lowest` and
    `highest`, and the weight h of the quotient by its mean. Levels outside belong to the first and to the last bin.

    Attributes:
        rate: Weight of the old average in an update.
        floor: Least ratio; `ceiling` is the largest.
    """

    rate: float = 0.5
    bins: int = 10
    lowest: float = 0.002
    highest: float = 80.0
    floor: float = 0.1
    ceiling: float = 20.0

    _SMALL = 1e-6  # against division by zero

    def clipped(self, ratios: Tensor) -> Tensor:
        """Return ratios between `floor` and `ceiling`."""
        return ratios.clamp(self.floor, self.ceiling)

    def bin_of(self, sigma: Tensor) -> Tensor:
        """Return the index of the bin of noise levels [B], int64."""
        share = (sigma - self.lowest) / (self.highest - self.lowest)
        return (share * self.bins).floor().clamp(0, self.bins - 1).long()

    def observed(self, ratios: Tensor, sigma: Tensor) -> Tensor:
        """Return means over images of what an update needs, [2, bins]: of ratios by bin, and of being in a bin."""
        inside = F.one_hot(self.bin_of(sigma), self.bins).to(ratios.dtype)
        return torch.stack([(ratios[:, None] * inside).mean(dim=0), inside.mean(dim=0)])

    def updated(
        self, averages: Sequence[float], *, totals: Sequence[float], shares: Sequence[float]
    ) -> tuple[float, ...]:
        """Return the averages after an update with the result of `observed`; those of empty bins stay."""
        return tuple(
            old if share == 0 else self.rate * old + (1 - self.rate) * total / share
            for old, total, share in zip(averages, totals, shares, strict=True)
        )

    def quotients(self, ratios: Tensor, sigma: Tensor, *, averages: Tensor) -> Tensor:
        """Return ratios [B] over the averages [bins] of their bins."""
        return ratios / (averages[self.bin_of(sigma)] + self._SMALL)

    def weights(self, h: Tensor, *, mean: Tensor | float) -> Tensor:
        """Return h over its mean."""
        return h / (mean + self._SMALL)


def surrogate(divergence: Divergence, log_ratios: Tensor, *, clip: float, weights: Tensor | None = None) -> Tensor:
    """Return phi(l) of log ratios l, clipped to [-clip, clip], with the derivative -h(e^l), also where l is clipped.

    So a generator whose images are far from the data has a force, of bounded weight. `weights` take the place of h.
    """
    held = log_ratios.detach().clamp(-clip, clip)
    h = divergence.h(held.exp()) if weights is None else weights
    return divergence.phi(held) - h * (log_ratios - log_ratios.detach())
