"""A part of another dataset: some of its images drawn at random, or those that such a draw leaves."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from onestep.config.constraints import Count, Seed
from onestep.data._subset import subset_of
from onestep.data.image_zip import ImageZip

__all__ = ["Part"]


class Part:
    """`images` images of another dataset, each class in proportion; with `rest`, all others instead.

    A part and the rest of it, of the same numbers, have no image in common: train on one, and hold the other out.
    Their order is that of the dataset. It is prepared from the archive of that dataset, the key `dataset` of its block.
    """

    prepared_source: ClassVar[bool] = True
    class_names: tuple[str, ...] = ()
    unreadable_share = 0.0

    def __init__(self, *, source: Path | str, images: Count, seed: Seed = 0, rest: bool = False) -> None:
        self._whole = ImageZip(source=source)
        self._again = partial(Part, source=source, images=images, seed=seed, rest=rest)
        if not 0 < images <= len(self._whole) - rest:
            least = f"at most {len(self._whole) - rest:,}, as it is a part of {len(self._whole):,}"
            raise ValueError(f"images: got {images:,}, expected {least}. Fix: choose fewer images")
        drawn = subset_of(self._whole.labels(), images=images, seed=seed)
        self._indices = np.setdiff1d(np.arange(len(self._whole)), drawn) if rest else drawn
        self.resolution, self.channels = self._whole.resolution, self._whole.channels
        self.classes = self._whole.classes

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self._whole[int(self._indices[index])]

    def __reduce__(self) -> tuple[Any, ...]:
        """Send the path and the options to another process, which reads the archive there."""
        return self._again, ()
