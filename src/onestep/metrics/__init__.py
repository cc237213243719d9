"""The contract of a metric: features in, numbers out; pure, keyword-only, so that the two sets cannot be swapped.

Legend: N generated images, M real images, D feature width, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

Direction = Literal["lower", "higher"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Statistics:
    """A Gaussian fitted to features that are not at hand, as references are published.

    Attributes:
        mean: [D].
        covariance: [D, D], over N - 1.
    """

    mean: Any
    covariance: Any


class Metric(Protocol):
    """What the files of this folder hold.

    A metric is called with keyword arguments among those named in `compares`, each float32 or float64:
    `generated` [N, D] and `real` [M, D] features, or `probabilities` [N, K] of the generated images alone.

    Attributes:
        values: The names of the numbers it returns, each with the direction that is better.
        compares: The arrays it is given: ("generated", "real"), or ("probabilities",).
        takes_statistics: Whether `real` may be `Statistics` instead.
    """

    values: ClassVar[Mapping[str, Direction]]
    compares: ClassVar[tuple[str, ...]]
    takes_statistics: ClassVar[bool]

    def __call__(self, **arrays: object) -> dict[str, float]:
        """Return one number for each name in `values` (and none else that a table may show)."""
        ...
