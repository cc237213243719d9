"""Precision and recall of k-nearest-neighbour manifolds (Kynkaanniemi et al., arXiv:1904.06991, section 2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from onestep.metrics import Direction
from onestep.metrics._arrays import finite_rows, same_width
from onestep.metrics._memberships import memberships
from onestep.metrics._neighbours import Arithmetic, prepared

__all__ = ["PrecisionRecall"]


class PrecisionRecall:
    """Fidelity and coverage: which share of one set lies within the other's manifold; both 0 to 1, higher is better.

    The manifold of a set is the union of balls around its members, each reaching its k-th nearest neighbour.

    Memory: at most `memory_mib` for distances, and beside them the features in float64 and float32, which is four times
    what they take as float32; never the table, which for 50,000 images each way has 20 GB.
    """

    values: ClassVar[Mapping[str, Direction]] = {"precision": "higher", "recall": "higher"}
    compares: ClassVar[tuple[str, ...]] = ("generated", "real")
    takes_statistics: ClassVar[bool] = False

    def __init__(self, *, neighbours: int = 3, memory_mib: int = 1024, arithmetic: Arithmetic = "float64") -> None:
        """Choose the manifold.

        Args:
            neighbours: k; a member is not its own neighbour.
            memory_mib: About how much memory the table of distances may take at a time; it changes no result.
            arithmetic: Of the distances. float16 rounds them as guided-diffusion does, which moves the shares by up to
                0.01, for a comparison with numbers published from it; features too large for it take float32.

        Raises:
            ValueError: A number is below 1.
        """
        if neighbours < 1 or memory_mib < 1:
            raise ValueError(f"neighbours and memory_mib must be from 1 on, found {neighbours} and {memory_mib}")
        self.neighbours = neighbours
        self.memory_mib = memory_mib
        self.arithmetic = arithmetic

    def __call__(self, *, generated: Any, real: Any) -> dict[str, float]:
        """Compare two sets of features, tensors or numpy arrays.

        Args:
            generated: Features of generated images, [N, D].
            real: Features of real images, [M, D].

        Returns:
            `precision`: the share of generated images inside the real manifold;
            `recall`: the share of real images inside the generated manifold.

        Raises:
            ValueError: A set has no more than k images or values that are not finite, or the widths differ.
        """
        generated = finite_rows(generated, called="generated features", at_least=self.neighbours + 1)
        real = finite_rows(real, called="real features", at_least=self.neighbours + 1)
        same_width(generated=generated, real=real)
        generated, real = prepared(generated, real, arithmetic=self.arithmetic)
        in_real, in_generated = memberships(generated, real, neighbours=self.neighbours, memory_mib=self.memory_mib)
        return {"precision": float(in_real.double().mean()), "recall": float(in_generated.double().mean())}
