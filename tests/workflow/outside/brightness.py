"""A metric on pixels from outside the package: mean brightness and contrast of generated images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

__all__ = ["Brightness"]


@dataclass(frozen=True, kw_only=True)
class Brightness:
    """Mean and standard deviation of all pixels, divided by `white`."""

    white: float = 255.0

    inputs: ClassVar[tuple[str, ...]] = ("pixels",)
    values: ClassVar[Mapping[str, str]] = {"brightness": "higher", "contrast": "higher"}
    takes_statistics: ClassVar[bool] = False

    @property
    def least_images(self) -> int:
        """One image is enough."""
        return 1

    def __call__(self, *, pixels: Any) -> dict[str, float]:
        """Return both numbers of pixels, uint8 [N, C, H, W]."""
        scaled = np.asarray(pixels, dtype=np.float64) / self.white
        return {"brightness": float(scaled.mean()), "contrast": float(scaled.std())}
