"""Precision and recall of k-nearest-neighbour manifolds (Kynkaanniemi et al., arXiv:1904.06991, section 2)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from onestep.metrics import Direction
from onestep.metrics._arrays import finite_rows, same_width

__all__ = ["PrecisionRecall"]


class PrecisionRecall:
    """Fidelity and coverage: which share of one set lies within the other's manifold; both 0 to 1, higher is better.

    The manifold of a set is the union of balls around its members, each reaching its k-th nearest neighbour.
    """

    values: ClassVar[Mapping[str, Direction]] = {"precision": "higher", "recall": "higher"}
    compares: ClassVar[tuple[str, ...]] = ("generated", "real")
    takes_statistics: ClassVar[bool] = False

    def __init__(
        self, *, neighbours: int = 3, memory_mib: int = 1024, arithmetic: Literal["float64", "float16"] = "float64"
    ) -> None:
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
        generated, real = (_exact if self.arithmetic == "float64" else _halved)(generated, real)
        generated_radii, real_radii = self._squared_radii(generated), self._squared_radii(real)
        in_real = torch.zeros(len(generated), dtype=torch.bool, device=real.device)
        in_generated = torch.zeros(len(real), dtype=torch.bool, device=real.device)
        for rows, squared in self._squared_distances(generated, real):
            in_real[rows] = (squared <= real_radii).any(dim=1)
            in_generated |= (squared <= generated_radii[rows, None]).any(dim=0)
        return {"precision": float(in_real.double().mean()), "recall": float(in_generated.double().mean())}

    def _squared_radii(self, members: Tensor) -> Tensor:
        """Return the squared distance of each member to its k-th nearest neighbour, [N]."""
        radii = torch.empty(len(members), dtype=members.dtype, device=members.device)
        for rows, squared in self._squared_distances(members, members):
            itself = torch.arange(rows.start, rows.stop, device=members.device)
            squared[itself - rows.start, itself] = torch.inf
            radii[rows] = squared.kthvalue(self.neighbours, dim=1).values
        return radii

    def _squared_distances(self, a: Tensor, b: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Yield, for some rows of `a` at a time, their squared distances to all rows of `b`."""
        tables = 4  # the distances, and what is made of them on the way
        count = max(1, self.memory_mib * 2**20 // (tables * max(4, b.element_size()) * len(b)))
        table = _rounded_table if a.dtype == torch.float16 else _table
        a_squared, b_squared = a.square().sum(dim=1), b.square().sum(dim=1)
        for start in range(0, len(a), count):
            rows = slice(start, min(start + count, len(a)))
            yield rows, table(a[rows], b, a_squared=a_squared[rows, None], b_squared=b_squared)


def _table(a: Tensor, b: Tensor, *, a_squared: Tensor, b_squared: Tensor) -> Tensor:
    """Return squared distances [N, M] of rows a [N, D] and b [M, D], given their squares [N, 1] and [M]."""
    size = a_squared + b_squared
    squared = torch.addmm(size, a, b.T, alpha=-2)
    # Below this all is rounding: copies of one image shall be at distance 0, whatever the matrix product says.
    return torch.where(squared > 1e-12 * size, squared, 0.0)


def _rounded_table(a: Tensor, b: Tensor, *, a_squared: Tensor, b_squared: Tensor) -> Tensor:
    """Return them, in float32, as float16 has them: the product is summed in float32 and rounded once."""
    product = (a.float() @ b.float().T).half()
    return (a_squared - 2 * product + b_squared).clamp(min=0).float()


def _exact(generated: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Return both sets in float64, around 0: distances stay, the numbers they are differences of get smaller."""
    # Differs from the reference: guided-diffusion computes in float16.
    generated, real = generated.double(), real.double()
    centre = real.mean(dim=0)
    return generated - centre, real - centre


def _halved(generated: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Return both sets in float16, or in float32 where a squared distance might exceed what float16 holds."""
    largest = max(float(rows.double().square().sum(dim=1).max()) for rows in (generated, real))
    fits = 4 * largest < torch.finfo(torch.float16).max
    dtype = torch.float16 if fits else torch.float32
    return generated.to(dtype), real.to(dtype)
