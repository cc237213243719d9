"""Who of two sets lies within a ball of the other, by float32 where that can decide, with the answers of float64.

A product of matrices takes half as long in float32, and its error has a bound. So each ball gets an inner and an outer
radius, beyond doubt within and without; an image in an inner ball, or in no outer one, needs no second look, and that
is nearly every image. The others are compared in float64, where the same bound leaves only what float64 cannot decide
either: copies whose distance is a radius. Where there are such, or float32 decides too little, all is done in float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from onestep.metrics._neighbours import rows_at_a_time, squared_distances, squared_radii

_WORTHWHILE = 0.25  # share of a set that a second look may be at
_WIDEST = 2**16
_TINY, _HUGE = 2.0**-60, 2.0**100  # squared norms between which float32 neither underflows nor overflows to any effect


def memberships(generated: Tensor, real: Tensor, *, neighbours: int, memory_mib: int) -> tuple[Tensor, Tensor]:
    """Return which generated images [N] lie in a ball around a real one, and which real ones [M] in one of the others.

    A ball reaches the k-th nearest neighbour of its centre, and holds its boundary.

    Args:
        generated: Features that `prepared` has returned, [N, D].
        real: The same, [M, D].
        neighbours: k.
        memory_mib: About how much memory the distances may take at a time; it changes no result.
    """
    found = None
    if _screening_pays(generated, real):
        found = screened_memberships(generated, real, neighbours=neighbours, memory_mib=memory_mib)
    return found or full_memberships(generated, real, neighbours=neighbours, memory_mib=memory_mib)


def full_memberships(generated: Tensor, real: Tensor, *, neighbours: int, memory_mib: int) -> tuple[Tensor, Tensor]:
    """Return them from all distances in the number type of the features."""
    generated_radii, real_radii = (
        squared_radii(members, neighbours=neighbours, memory_mib=memory_mib) for members in (generated, real)
    )
    in_real = torch.zeros(len(generated), dtype=torch.bool, device=real.device)
    in_generated = torch.zeros(len(real), dtype=torch.bool, device=real.device)
    for rows, squared in squared_distances(generated, real, memory_mib=memory_mib):
        in_real[rows] = (squared <= real_radii).any(dim=1)
        in_generated |= (squared <= generated_radii[rows, None]).any(dim=0)
    return in_real, in_generated


def screened_memberships(
    generated: Tensor, real: Tensor, *, neighbours: int, memory_mib: int
) -> tuple[Tensor, Tensor] | None:
    """Return what `full_memberships` returns for sets in float64, or None where only that can say it."""
    width, largest = generated.shape[1], _largest_square(generated, real)
    rounding = [_Rounding.of(dtype, width=width, largest=largest) for dtype in (torch.float32, torch.float64)]
    sets = [
        _Balls.around(centres, neighbours=neighbours, memory_mib=memory_mib, rounding=rounding[0])
        for centres in (generated, real)
    ]
    looks = _first_look(*sets, rounding=rounding[0], memory_mib=memory_mib)
    found = [
        _second_look(points, balls, *look, rounding=rounding[1])
        for points, balls, look in zip((generated, real), reversed(sets), looks, strict=True)
    ]
    return None if found[0] is None or found[1] is None else (found[0], found[1])


def _screening_pays(generated: Tensor, real: Tensor) -> bool:
    """Whether float32 is faster here, and its error within the bound: not where torch is told to round it further."""
    on_cpu = generated.dtype == torch.float64 and generated.device.type == "cpu"
    if not on_cpu or generated.shape[1] > _WIDEST or torch.get_float32_matmul_precision() != "highest":
        return False
    return _TINY < _largest_square(generated, real) < _HUGE


@dataclass(frozen=True, kw_only=True)
class _Rounding:
    """How far a squared distance T of two rows is from the float64 path's O: |T - O| <= relative (4 a^2 + 3 O) + floor.

    Here a is the norm of either row. A sum of n products, in whatever order, is off by at most g = n u / (1 - n u) of
    the sum of their sizes (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1), so T is off by at most
    3 g (a^2 + b^2), of which one is in the squared norms; u is the unit roundoff, n the width with some more for the
    roundings before and after the products. And b^2 <= 2 a^2 + 2 O, but for the rounding of O itself, because b is no
    longer than a and the distance together.
    """

    relative: float
    floor: float

    @classmethod
    def of(cls, dtype: torch.dtype, *, width: int, largest: float) -> _Rounding:
        """Return that of distances in `dtype` between features of some width, given their largest squared norm."""
        # Of the float64 path: its own rounding, and that it takes 1e-12 of a^2 + b^2 for nothing.
        relative = 3 * _growth(width, dtype=dtype) + 3 * _growth(width, dtype=torch.float64) + 2e-12
        return cls(relative=relative, floor=width * 2.0**-100 * (1 + largest))  # of what underflows in float32

    def bounds(self, squared: Tensor, squares: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the float64 path's number is between, given T and a^2, both float64."""
        slack = 4 * self.relative * squares + self.floor
        return (squared - slack) / (1 + 3 * self.relative), (squared + slack) / (1 - 3 * self.relative)

    def reach(self, balls: _Balls) -> tuple[Tensor, Tensor]:
        """Return the inner and the outer radius, squared: T up to the one is surely inside, T above the other not."""
        slack = 4 * self.relative * balls.squares + self.floor
        return (1 - 3 * self.relative) * balls.lower - slack, (1 + 3 * self.relative) * balls.upper + slack


def _growth(width: int, *, dtype: torch.dtype) -> float:
    """Return Higham's g."""
    size = (width + 32) * torch.finfo(dtype).eps / 2
    return size / (1 - size)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Balls:
    """Balls whose radii are known within bounds.

    Attributes:
        centres: Float64 [M, D].
        squares: Their squared norms, float64 [M].
        lower: Of the squared radii, float64 [M].
        upper: The same.
        neighbours: Which neighbour a ball reaches.
        memory_mib: As above.
    """

    centres: Tensor
    squares: Tensor
    lower: Tensor
    upper: Tensor
    neighbours: int
    memory_mib: int

    @classmethod
    def around(cls, centres: Tensor, *, neighbours: int, memory_mib: int, rounding: _Rounding) -> _Balls:
        """Return the balls as float32 knows them."""
        squares = _squares(centres)
        nearest = squared_radii(
            centres.float(), neighbours=neighbours, memory_mib=memory_mib, distances=single_distances
        )
        # The bound on |T - O| grows with O alone for a given centre, so it holds for the k-th smallest T and O as well.
        lower, upper = rounding.bounds(nearest.double(), squares)
        return cls(
            centres=centres, squares=squares, lower=lower, upper=upper, neighbours=neighbours, memory_mib=memory_mib
        )

    def refined(self, chosen: Tensor, *, rounding: _Rounding) -> _Balls:
        """Return them with the radii of some [n] as float64 knows them."""
        nearest = squared_radii(self.centres, neighbours=self.neighbours, memory_mib=self.memory_mib, chosen=chosen)
        lower, upper = rounding.bounds(nearest, self.squares[chosen])
        return _Balls(
            centres=self.centres,
            squares=self.squares,
            lower=self.lower.index_copy(0, chosen, lower),
            upper=self.upper.index_copy(0, chosen, upper),
            neighbours=self.neighbours,
            memory_mib=self.memory_mib,
        )


def single_distances(a: Tensor, b: Tensor, *, memory_mib: int) -> Iterator[tuple[slice, Tensor]]:
    """Yield what `squared_distances` yields, of rows in float32, without care for what is rounded to below 0."""
    a_squared, b_squared = _squares(a), _squares(b)
    count = rows_at_a_time(len(b), itemsize=4, memory_mib=memory_mib)
    for start in range(0, len(a), count):
        rows = slice(start, min(start + count, len(a)))
        yield rows, torch.addmm(b_squared, a[rows], b.T, alpha=-2).add_(a_squared[rows, None])


def _squares(rows: Tensor) -> Tensor:
    """Return the squared norms of rows [N, D], [N]; unlike a sum of squares it needs no memory."""
    return torch.linalg.vector_norm(rows, dim=1).square()


def _largest_square(*sets: Tensor) -> float:
    return max(float(_squares(rows).max()) for rows in sets)


def _first_look(
    generated: _Balls, real: _Balls, *, rounding: _Rounding, memory_mib: int
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return, for the generated images among the real balls and for the real ones among the others, two masks.

    The first is true for who is surely inside of a ball, the second for who may be.
    """
    generated_inner, generated_outer = (radii.float()[:, None] for radii in rounding.reach(generated))
    real_inner, real_outer = (radii.float() for radii in rounding.reach(real))
    in_real, near_real = (torch.zeros(len(generated.centres), dtype=torch.bool) for _ in range(2))
    in_generated, near_generated = (torch.zeros(len(real.centres), dtype=torch.bool) for _ in range(2))
    both = generated.centres.float(), real.centres.float()
    for rows, squared in single_distances(*both, memory_mib=memory_mib):
        in_real[rows] = (squared <= real_inner).any(dim=1)
        near_real[rows] = (squared <= real_outer).any(dim=1)
        in_generated |= (squared <= generated_inner[rows]).any(dim=0)
        near_generated |= (squared <= generated_outer[rows]).any(dim=0)
    return (in_real, near_real), (in_generated, near_generated)


def _second_look(points: Tensor, balls: _Balls, inside: Tensor, near: Tensor, *, rounding: _Rounding) -> Tensor | None:
    """Return who is inside of a ball, bool [N], or None where this cannot say, or would take too long to.

    Args:
        points: Float64 [N, D].
        balls: Those of the other set.
        inside: Who is surely inside.
        near: Who may be.
        rounding: That of float64.
    """
    inside = inside.clone()
    for _ in range(2):
        undecided = (near & ~inside).nonzero()[:, 0]
        if len(undecided) > _WORTHWHILE * len(points):
            return None
        inside[undecided], near[undecided], doubtful = _compared(points[undecided], balls, rounding=rounding)
        if len(doubtful) > _WORTHWHILE * len(balls.centres):
            return None
        balls = balls.refined(doubtful, rounding=rounding) if len(doubtful) else balls
    return None if (near & ~inside).any() else inside


def _compared(points: Tensor, balls: _Balls, *, rounding: _Rounding) -> tuple[Tensor, Tensor, Tensor]:
    """Return who is surely inside, who may be, and the balls [m] of which it depends, by distances in float64."""
    inner, outer = rounding.reach(balls)
    inside, near = (torch.zeros(len(points), dtype=torch.bool) for _ in range(2))
    doubtful = torch.zeros(len(balls.centres), dtype=torch.bool)
    for rows, squared in squared_distances(points, balls.centres, memory_mib=balls.memory_mib):
        within = squared <= inner
        perhaps = (squared <= outer) & ~within
        inside[rows] = within.any(dim=1)
        near[rows] = inside[rows] | perhaps.any(dim=1)
        doubtful |= (perhaps & ~inside[rows, None]).any(dim=0)
    return inside, near, doubtful.nonzero()[:, 0]
