"""Distances between two sets of features and to nearest neighbours, a chunk at a time: never the whole table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor

Arithmetic = Literal["float64", "float16"]

# As `squared_distances`: from two sets and `memory_mib` to rows of the table, a few at a time.
Distances = Callable[..., Iterator[tuple[slice, Tensor]]]

_GROUP = 64  # columns of a table that are looked at together
_ROWS = 1_024  # squared at a time
_TABLES = 4  # the distances, and what is made of them on the way


def prepared(generated: Tensor, real: Tensor, *, arithmetic: Arithmetic) -> tuple[Tensor, Tensor]:
    """Return two sets of features [N, D] and [M, D] in the number type of their distances."""
    return (_exact if arithmetic == "float64" else _halved)(generated, real)


def squared_radii(
    members: Tensor,
    *,
    neighbours: int,
    memory_mib: int,
    chosen: Tensor | None = None,
    distances: Distances | None = None,
) -> Tensor:
    """Return the squared distance of each member to its k-th nearest neighbour, [N]; none is its own neighbour.

    Args:
        members: A set that `prepared` has returned, [N, D].
        neighbours: k.
        memory_mib: About how much memory the distances may take at a time; it changes no result.
        chosen: The members [n] to do it for, of all N; every one if None.
        distances: How they are computed; as by `squared_distances` if None.
    """
    chosen = torch.arange(len(members), device=members.device) if chosen is None else chosen
    some = members if len(chosen) == len(members) else members[chosen]
    radii = torch.empty(len(chosen), dtype=members.dtype, device=members.device)
    for rows, squared in (distances or squared_distances)(some, members, memory_mib=memory_mib):
        squared[torch.arange(len(squared), device=members.device), chosen[rows]] = torch.inf
        radii[rows] = _kth_smallest(squared, neighbours)
    return radii


def _kth_smallest(table: Tensor, k: int) -> Tensor:
    """Return the k-th smallest number of each row."""
    groups = table.shape[1] // _GROUP
    if groups <= k:
        return table.kthvalue(k, dim=1).values
    # The k smallest are in the k groups with the smallest least members; a minimum costs a tenth of a selection.
    grouped = table[:, : groups * _GROUP].unflatten(1, (_GROUP, groups))
    chosen = grouped.amin(dim=1).topk(k, dim=1, largest=False).indices[:, None]
    few = grouped.gather(2, chosen.expand(-1, _GROUP, -1)).flatten(1)
    return torch.cat([few, table[:, groups * _GROUP :]], dim=1).kthvalue(k, dim=1).values


def squared_distances(a: Tensor, b: Tensor, *, memory_mib: int) -> Iterator[tuple[slice, Tensor]]:
    """Yield, for some rows of `a` [N, D] at a time, their squared distances to all rows of `b` [M, D]."""
    count = rows_at_a_time(len(b), itemsize=b.element_size(), memory_mib=memory_mib)
    table = _rounded_table if a.dtype == torch.float16 else _table
    a_squared, b_squared = _squared_norms(a), _squared_norms(b)
    for start in range(0, len(a), count):
        rows = slice(start, min(start + count, len(a)))
        yield rows, table(a[rows], b, a_squared=a_squared[rows, None], b_squared=b_squared)


def rows_at_a_time(width: int, *, itemsize: int, memory_mib: int) -> int:
    """Return how many rows of a table of distances, each of `width` numbers, fit into the memory; at least one."""
    count = max(1, memory_mib * 2**20 // (_TABLES * max(4, itemsize) * width))
    # In whole groups, because the last few rows of a matrix product may be rounded otherwise than those in groups.
    return max(count - count % 16, min(count, 16))


def _squared_norms(rows: Tensor) -> Tensor:
    """Return them, [N], without a second set in memory."""
    return torch.cat([part.square().sum(dim=1) for part in rows.split(_ROWS)])


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
    centre = real.mean(dim=0, dtype=torch.float64)
    return generated - centre, real - centre


def _halved(generated: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Return both sets in float16, or in float32 where a squared distance might exceed what float16 holds."""
    largest = max(float(rows.double().square().sum(dim=1).max()) for rows in (generated, real))
    fits = 4 * largest < torch.finfo(torch.float16).max
    dtype = torch.float16 if fits else torch.float32
    return generated.to(dtype), real.to(dtype)
