"""Precision and recall of k-nearest-neighbour manifolds (Kynkaanniemi et al., arXiv:1904.06991, section 2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from onestep.config.constraints import Mebibytes, SmallCount
from onestep.metrics import Direction
from onestep.metrics._features import Arithmetic, finite_pair, memberships, prepared

__all__ = ["PrecisionRecall"]


@dataclass(frozen=True, kw_only=True)
class PrecisionRecall:
    """Share of each set that lies in the manifold of the other: fidelity and coverage, in [0, 1], higher is better.

    The manifold of a set is the union of balls around its members, each reaching the k-th nearest neighbor. The whole
    table of distances, 20 GB for 50,000 images in each set, is never stored. `arithmetic` is their number type: float16
    rounds them as guided-diffusion does, which changes the shares by up to 0.01, for comparison with numbers published
    from it; features that exceed its range use float32.
    """

    values: ClassVar[Mapping[str, Direction]] = {"precision": "higher", "recall": "higher"}
    inputs: ClassVar[tuple[str, ...]] = ("generated", "real")
    takes_statistics: ClassVar[bool] = False

    neighbours: SmallCount = 3  # k; a member is not its own neighbor
    memory_mib: Mebibytes = 1024  # approximate memory of the distances at a time, in MiB; does not change the result
    arithmetic: Arithmetic = "float64"

    def __post_init__(self) -> None:
        if min(self.neighbours, self.memory_mib) < 1:
            found = f"{self.neighbours} and {self.memory_mib}"
            raise ValueError(f"neighbours and memory_mib: got {found}, expected at least 1")

    @property
    def least_images(self) -> int:
        """One more than k, for the generated manifold."""
        return self.neighbours + 1

    def __call__(self, *, generated: Any, real: Any) -> dict[str, float]:
        """Return the shares of generated images in the real manifold, and of real ones in the generated manifold.

        The features are tensors or numpy arrays. k images or fewer, values that are not finite, or different widths are
        a ValueError.
        """
        sets = finite_pair(generated, real, least=(self.least_images, self.least_images))
        sets = prepared(*sets, arithmetic=self.arithmetic)
        in_real, in_generated = memberships(*sets, neighbours=self.neighbours, memory_mib=self.memory_mib)
        return {"precision": float(in_real.double().mean()), "recall": float(in_generated.double().mean())}
