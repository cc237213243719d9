"""Density and coverage of real neighbourhoods (Naeem et al., arXiv:2002.09797, section 3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from onestep.metrics import Direction
from onestep.metrics._arrays import finite_rows, same_width
from onestep.metrics._neighbours import prepared, squared_distances, squared_radii

__all__ = ["DensityCoverage"]


class DensityCoverage:
    """Fidelity and diversity by the balls around real images, each reaching its k-th nearest real neighbour.

    Unlike precision and recall, no ball is around a generated image, so outliers of the generator enlarge none. Density
    is 1 in expectation where the sets agree and may be above; coverage is from 0 to 1. Higher is better.
    """

    values: ClassVar[Mapping[str, Direction]] = {"density": "higher", "coverage": "higher"}
    compares: ClassVar[tuple[str, ...]] = ("generated", "real")
    takes_statistics: ClassVar[bool] = False

    def __init__(self, *, neighbours: int = 5, memory_mib: int = 1024) -> None:
        """Choose the balls.

        Args:
            neighbours: k; an image is not its own neighbour.
            memory_mib: About how much memory the table of distances may take at a time; it changes no result.

        Raises:
            ValueError: A number is below 1.
        """
        if neighbours < 1 or memory_mib < 1:
            raise ValueError(f"neighbours and memory_mib must be from 1 on, found {neighbours} and {memory_mib}")
        self.neighbours, self.memory_mib = neighbours, memory_mib

    def __call__(self, *, generated: Any, real: Any) -> dict[str, float]:
        """Compare two sets of features, tensors or numpy arrays; all arithmetic is float64.

        Args:
            generated: Features of generated images, [N, D].
            real: Features of real images, [M, D].

        Returns:
            `density`: in how many real balls a generated image lies on average, over k;
            `coverage`: the share of real balls with a generated image in them.

        Raises:
            ValueError: There are no generated images, no more than k real ones, or values that are not finite, or the
                widths differ.
        """
        generated = finite_rows(generated, called="generated features", at_least=1)
        real = finite_rows(real, called="real features", at_least=self.neighbours + 1)
        same_width(generated=generated, real=real)
        generated, real = prepared(generated, real, arithmetic="float64")
        radii = squared_radii(real, neighbours=self.neighbours, memory_mib=self.memory_mib)
        covered = torch.zeros(len(real), dtype=torch.bool, device=real.device)
        hits = 0
        for _, squared in squared_distances(generated, real, memory_mib=self.memory_mib):
            # Differs from the reference: a ball holds its boundary, as with precision and recall; the authors' code
            # leaves it out. It matters only where a generated image is the copy of a real one.
            inside = squared <= radii
            hits += int(inside.sum())
            covered |= inside.any(dim=0)
        return {
            "density": hits / (self.neighbours * len(generated)),
            "coverage": float(covered.double().mean()),
        }
