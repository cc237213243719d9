"""Frechet distances in several feature networks, each relative to that of held-out real images."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any, ClassVar

from onestep.metrics import Direction
from onestep.metrics._features import finite_pair
from onestep.metrics.frechet import frechet_from_statistics, gaussian_fit

__all__ = ["Representations"]


class Representations:
    """Mean over feature networks of the Frechet distance divided by that of held-out real images; lower is better.

    In each network, both are distances from the same real images, those of the dataset: 1 is as near as real images
    that no model saw, by definition. Distances of different networks have different scales; relative ones may be
    averaged. It is FDr^k of FD-loss (arXiv:2604.28190) for k networks. A Frechet distance of few images is too large,
    so the held-out ones should be as many as the measured ones; both numbers are recorded.
    """

    values: ClassVar[Mapping[str, Direction]] = {"relative": "lower"}
    inputs: ClassVar[tuple[str, ...]] = ("generated", "real", "held_out")
    by_network: ClassVar[bool] = True
    takes_statistics: ClassVar[bool] = False
    least_images: ClassVar[int] = 2

    def __call__(
        self, *, generated: Mapping[str, Any], real: Mapping[str, Any], held_out: Mapping[str, Any]
    ) -> dict[str, float]:
        """Compare features [N, D] of generated images by name of the network with real ones [M, D], in float64.

        Beside the mean, `relative`, the dictionary has `relative_X` and the two distances, `generated_X` and
        `held_out_X`, of each network X. Features of fewer than two images or of other widths, values that are not
        finite, and held-out images at a distance of 0, up to rounding, are a ValueError.
        """
        found: dict[str, float] = {}
        ratios = []
        for name, rows in generated.items():
            own, reference = finite_pair(rows, real[name], least=(2, 2))
            other, reference = finite_pair(held_out[name], reference, least=(2, 2))
            fit = gaussian_fit(reference)
            distances = [frechet_from_statistics(*gaussian_fit(each), *fit) for each in (own, other)]
            # Rounding makes a distance of identical images a little more than 0 on some processors.
            if distances[1] <= 1e-6 * fit[1].trace():
                what = f"held-out images: got the Frechet distance 0 by {name}, expected images that the dataset lacks"
                raise ValueError(f"{what}. Fix: choose another dataset under held_out")
            ratios.append(distances[0] / distances[1])
            found[f"relative_{name}"] = ratios[-1]
            found |= {f"generated_{name}": distances[0], f"held_out_{name}": distances[1]}
        return {"relative": fmean(ratios), **found}
