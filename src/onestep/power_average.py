"""Averages of weights with a power-function profile, and any further one from them afterwards (EDM2).

The weight of time t in the average at the end T is proportional to t^g; its standard deviation relative to T is what
names an average, 0.05 for 5 % of a training. Averages of two profiles at every snapshot are a basis in which that of
another profile, at any of these times, is approximated by least squares. Source: Karras et al., arXiv:2312.02696,
section 3 and appendix C. No torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Profile(NamedTuple):
    """The profile of an average: its end, in images, and the exponent of the power function."""

    images: float
    exponent: float


def exponent_of(std: float) -> float:
    """Return the exponent of the profile with a relative standard deviation, above 0 and below 0.288.

    That is the largest real root of g^3 + 7 g^2 + (16 - std^-2) g + (12 - std^-2).
    """
    if not 0 < std < 12**-0.5:
        raise ValueError(f"relative standard deviation: got {std}, expected one above 0 and below {12**-0.5:.3f}")
    roots = np.roots([1.0, 7.0, 16.0 - std**-2, 12.0 - std**-2])
    return float(roots.real.max())


def std_of(exponent: float) -> float:
    """Return the relative standard deviation of a profile; the inverse of `exponent_of`."""
    return float(np.sqrt((exponent + 1) / ((exponent + 2) ** 2 * (exponent + 3))))


def coefficients(basis: Sequence[Profile], wanted: Sequence[Profile]) -> np.ndarray:
    """Return the weight of each average of the basis in each wanted one, float64 [basis, wanted]; columns sum to 1.

    They minimise the squared difference of the profiles, integrated over time. The profiles of the basis must differ.
    """
    solution = np.linalg.solve(_products(basis, basis), _products(basis, wanted))
    return solution / solution.sum(axis=0)


def _products(rows: Sequence[Profile], columns: Sequence[Profile]) -> np.ndarray:
    """Return the integral of the product of two profiles, for each pair."""
    (ends, powers), (other_ends, other_powers) = (np.array(each, dtype=np.float64).T for each in (rows, columns))
    end, other_end = ends[:, None], other_ends[None]
    power, other_power = powers[:, None], other_powers[None]
    ratio = (end / other_end) ** np.where(end < other_end, other_power, -power)
    return (power + 1) * (other_power + 1) * ratio / ((power + other_power + 1) * np.maximum(end, other_end))
