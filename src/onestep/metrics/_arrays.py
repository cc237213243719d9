"""What all metrics ask of the arrays they are given."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


def finite_rows(array: Any, *, called: str, at_least: int) -> Tensor:
    """Return a matrix with one row an image as a tensor without a gradient, in its own type and place.

    Args:
        array: A tensor or a numpy array [N, D].
        called: What the message calls it.
        at_least: The smallest N that is allowed.

    Raises:
        ValueError: It is no matrix, has too few rows, or holds numbers that are not finite.
    """
    rows = array.detach() if isinstance(array, Tensor) else torch.from_numpy(np.require(array, requirements="CW"))
    if rows.ndim != 2 or rows.shape[1] == 0:
        raise ValueError(f"{called} must be a matrix with a row for each image, found the shape {list(rows.shape)}")
    if len(rows) < at_least:
        raise ValueError(f"{called}: found {len(rows)} images, needed at least {at_least}; sample more")
    broken = int((~torch.isfinite(rows)).any(dim=1).sum())
    if broken:
        raise ValueError(
            f"{called}: {broken} of {len(rows)} images have values that are not finite; "
            "look at these images, and at the log of the run that made them"
        )
    return rows


def same_width(*, generated: Tensor, real: Tensor) -> None:
    """Refuse features of two different networks.

    Raises:
        ValueError: The widths differ.
    """
    if generated.shape[1] != real.shape[1]:
        raise ValueError(
            f"generated features are {generated.shape[1]} wide, real features {real.shape[1]}; "
            "extract both with the same network"
        )
