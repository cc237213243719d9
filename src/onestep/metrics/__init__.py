"""The contract of a metric: features in, numbers out; pure, keyword-only, so that the two sets cannot be swapped.

Legend: N generated images, M real images, D feature width, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, Protocol

Direction = Literal["lower", "higher"]


class Metric(Protocol):
    """What the files of this folder hold.

    A metric is called with keyword arguments among those named in `compares`, each float32 or float64:
    `generated` [N, D] and `real` [M, D] features, or `probabilities` [N, K] of the generated images alone.

    Attributes:
        values: The names of the numbers it returns, each with the direction that is better.
        compares: The arrays it is given: ("generated", "real"), or ("probabilities",).
    """

    values: ClassVar[Mapping[str, Direction]]
    compares: ClassVar[tuple[str, ...]]

    def __call__(self, **arrays: object) -> dict[str, float]:
        """Return one number for each name in `values` (and none else that a table may show)."""
        ...
