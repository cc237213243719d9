"""Density and coverage of real neighbourhoods (Naeem et al., arXiv:2002.09797, section 3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from onestep.config.constraints import Mebibytes, SmallCount
from onestep.metrics import Direction
from onestep.metrics._features import finite_pair, prepared, squared_distances, squared_radii

__all__ = ["DensityCoverage"]


@dataclass(frozen=True, kw_only=True)
class DensityCoverage:
    """Fidelity and diversity by balls around real images, each reaching the k-th nearest real neighbor.

    Unlike precision and recall, balls are centered on real images only, so generated outliers cannot enlarge them. The
    expected density of two samples of one distribution is 1, and larger values are possible; coverage is in [0, 1].
    Higher is better.
    """

    values: ClassVar[Mapping[str, Direction]] = {"density": "higher", "coverage": "higher"}
    inputs: ClassVar[tuple[str, ...]] = ("generated", "real")
    takes_statistics: ClassVar[bool] = False

    neighbours: SmallCount = 5  # k; an image is not its own neighbor
    memory_mib: Mebibytes = 1024  # approximate memory of the distances at a time, in MiB; does not change the result

    def __post_init__(self) -> None:
        if min(self.neighbours, self.memory_mib) < 1:
            found = f"{self.neighbours} and {self.memory_mib}"
            raise ValueError(f"neighbours and memory_mib: got {found}, expected at least 1")

    @property
    def least_images(self) -> int:
        """One more than k, as for precision and recall with the same k."""
        return self.neighbours + 1

    def __call__(self, *, generated: Any, real: Any) -> dict[str, float]:
        """Return the mean number of real balls around a generated image, by k, and the share of balls that hold any.

        The features are compared in float64. No generated images, k real ones or fewer, values that are not finite, or
        different widths are a ValueError.
        """
        sets = finite_pair(generated, real, least=(1, self.least_images))
        generated, real = prepared(*sets, arithmetic="float64")
        radii = squared_radii(real, neighbours=self.neighbours, memory_mib=self.memory_mib)
        covered = torch.zeros(len(real), dtype=torch.bool, device=real.device)
        hits = 0
        for _, squared in squared_distances(generated, real, memory_mib=self.memory_mib):
            # Differs from the reference: a ball includes its boundary, as in precision and recall; the authors' code
            # excludes it. This matters only where a generated image is a copy of a real one.
            inside = squared <= radii
            hits += int(inside.sum())
            covered |= inside.any(dim=0)
        return {"density": hits / (self.neighbours * len(generated)), "coverage": float(covered.double().mean())}
