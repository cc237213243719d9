"""A part of a dataset, for a run that trains on few images; see `onestep.data._subset` for how it is drawn."""

from __future__ import annotations

from dataclasses import dataclass

from onestep.config.constraints import Count, Seed


@dataclass(frozen=True, kw_only=True)
class Subset:
    """The images that a run trains on, drawn by a seed; metrics compare with the whole dataset as always.

    Of one seed, a smaller subset is part of each larger one. Each class has its share of the dataset's images.
    """

    images: Count  # at most those of the dataset
    seed: Seed = 0  # of the draw alone, so that runs with other seeds may train on the same images
