"""Checks of the arrays that metrics receive."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


def finite_rows(array: Any, *, called: str, at_least: int) -> Tensor:
    """Return a matrix [N, D], called so in messages, as a tensor without gradient, of the same type and device.

    Raises:
        ValueError: The array is not a matrix, has too few rows, or contains values that are not finite.
    """
    rows = array.detach() if isinstance(array, Tensor) else torch.from_numpy(np.require(array, requirements=["C", "W"]))
    if rows.ndim != 2 or rows.shape[1] == 0:
        raise ValueError(f"{called}: got the shape {list(rows.shape)}, expected a matrix with one row per image")
    if len(rows) < at_least:
        raise ValueError(f"{called}: got {len(rows)} images, expected at least {at_least}. Fix: sample more")
    broken = int((~torch.isfinite(rows)).any(dim=1).sum())
    if broken:
        raise ValueError(
            f"{called}: {broken} of {len(rows)} images have values that are not finite. "
            "Fix: check these images and the log of the run that generated them"
        )
    return rows


def finite_pair(*, generated: Any, real: Any, least_generated: int, least_real: int) -> tuple[Tensor, Tensor]:
    """Return generated features [N, D] and real ones [M, D], checked as by `finite_rows`.

    Raises:
        ValueError: A set is refused by `finite_rows`, or the widths differ.
    """
    rows = finite_rows(generated, called="generated features", at_least=least_generated)
    real_rows = finite_rows(real, called="real features", at_least=least_real)
    if rows.shape[1] != real_rows.shape[1]:
        raise ValueError(
            f"features: got generated ones of width {rows.shape[1]} and real ones of width {real_rows.shape[1]}, "
            "expected one width. Fix: extract both with the same network"
        )
    return rows, real_rows
