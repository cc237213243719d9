"""The contract of a metric: a pure function from features, probabilities or pixels of images to numbers.

Legend: N generated images, M real images, D feature width, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

Direction = Literal["lower", "higher"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Statistics:
    """Mean [D] and covariance [D, D], normalized by N - 1, of features: the form in which references are published."""

    mean: Any
    covariance: Any


class Metric(Protocol):
    """A class in a file of this folder, or outside the package, called with exactly the inputs that it declares.

    | input | value |
    |---|---|
    | `generated` | features of generated images, float32 [N, D] |
    | `real` | features of real images, float32 [M, D], or `Statistics` |
    | `probabilities` | class probabilities of generated images, float32 [N, K] |
    | `held_out` | features of real images that the dataset lacks, float32 [M, D] |
    | `pixels` | generated images, uint8 [N, C, H, W] |
    | `real_pixels` | real images, uint8 [M, C, H, W] |

    `values` are the names of the numbers that it returns, each with the direction that is better; the first one is the
    headline of the metric.

    Optional class attribute: `by_network`. If True, `generated`, `real` and `held_out` are mappings from the names of
    several feature networks to their features.
    """

    inputs: ClassVar[tuple[str, ...]]
    values: ClassVar[Mapping[str, Direction]]
    takes_statistics: ClassVar[bool]  # whether `real` may be `Statistics`

    @property
    def least_images(self) -> int:
        """The smallest number of images in a seed block, given the options."""
        ...

    def __call__(self, **inputs: Any) -> dict[str, float]:
        """Return the numbers named in `values`; further numbers are recorded, but not offered to tables."""
        ...
