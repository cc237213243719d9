"""Images changed at random before a network sees them, where an objective's options say so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from onestep import plugins
from onestep.objectives import RowRandom


class _Augmented(Protocol):
    """Changed images [B, C, H, W], and what was done to them [B, L]."""

    images: Tensor
    labels: Tensor


class _Pipe(Protocol):
    """A choice of augmentations/."""

    def __call__(self, images: Tensor, *, generator: RowRandom) -> _Augmented: ...


def build_pipe(block: Mapping[str, Any]) -> _Pipe:
    """Build what `{name: edm, probability: 0.12, operations: {xflip: 1.0}}` describes, a choice of augmentations/.

    Raises:
        ValueError: There is no such choice, or it does not take these options.
    """
    options = {key: value for key, value in block.items() if key != "name"}
    try:
        return plugins.load("augmentations", str(block.get("name")))(**options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"augment: {error}") from error
