"""Features of two sets: their checks, their device, distances to nearest neighbors, and membership in k-NN balls.

Legend: N generated images, M real images, D feature width. The table of distances is made in chunks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

Arithmetic = Literal["float64", "float16"]

_GROUP = 64  # columns per group in the search for the k smallest distances
_ROWS = 1_024  # rows per chunk of the squared norms
_WORTHWHILE = 2**22  # numbers; a GPU takes seconds to start
_COPIES, _RESERVE = 4, 2**32  # float64 copies of the features, and bytes beside them, that a GPU must have free
_TABLES = 4  # copies of a chunk of the distance table that exist at once


def device_for(*arrays: Any) -> torch.device:
    """Return where a metric computes: on the device of the first tensor, for numpy arrays on the GPU if there is one.

    Arrays of fewer than four million numbers, or that do not fit the GPU's free memory, are for the CPU.
    """
    for array in arrays:
        if isinstance(array, Tensor):
            return array.device
    count = sum(np.size(array) for array in arrays)
    if count < _WORTHWHILE or not torch.cuda.is_available():
        return torch.device("cpu")
    free, _ = torch.cuda.mem_get_info()
    return torch.device("cuda" if 8 * _COPIES * count + _RESERVE <= free else "cpu")


def device_record(*arrays: Any) -> dict[str, str]:
    """Return the name of the GPU on which a metric of these numpy arrays computes, as `device`; of a CPU nothing."""
    on_gpu = device_for(*arrays).type == "cuda"
    return {"device": torch.cuda.get_device_name()} if on_gpu else {}


def finite_rows(array: Any, *, called: str, at_least: int, device: torch.device | None = None) -> Tensor:
    """Return a matrix [N, D], called so in messages, as a tensor without gradient, of the same type.

    It is on `device`, or where `device_for` has it. An array that is no matrix, has too few rows, or contains values
    that are not finite is a ValueError.
    """
    rows = array.detach() if isinstance(array, Tensor) else torch.from_numpy(np.require(array, requirements=["C", "W"]))
    rows = rows.to(device_for(array) if device is None else device)
    if rows.ndim != 2 or rows.shape[1] == 0:
        raise ValueError(f"{called}: got the shape {list(rows.shape)}, expected a matrix with one row per image")
    if len(rows) < at_least:
        raise ValueError(f"{called}: got {len(rows)} images, expected at least {at_least}. Fix: sample more")
    broken = int((~torch.isfinite(rows)).any(dim=1).sum())
    if broken:
        fix = "check these images and the log of the run that generated them"
        raise ValueError(f"{called}: {broken} of {len(rows)} images have values that are not finite. Fix: {fix}")
    return rows


def finite_pair(generated: Any, real: Any, *, least: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return generated features [N, D] and real ones [M, D], of one width and device, checked as by `finite_rows`."""
    device = device_for(generated, real)
    rows = finite_rows(generated, called="generated features", at_least=least[0], device=device)
    real_rows = finite_rows(real, called="real features", at_least=least[1], device=device)
    if rows.shape[1] != real_rows.shape[1]:
        found = f"generated ones of width {rows.shape[1]} and real ones of width {real_rows.shape[1]}"
        raise ValueError(f"features: got {found}, expected one width. Fix: extract both with the same network")
    return rows, real_rows


def prepared(generated: Tensor, real: Tensor, *, arithmetic: Arithmetic) -> tuple[Tensor, Tensor]:
    """Convert features [N, D] and [M, D] to the number type of their distances.

    float64 sets are centered on the real mean, which reduces rounding. float16 sets become float32 where a squared
    distance might exceed the range of float16.
    """
    if arithmetic == "float64":
        # Differs from the reference: guided-diffusion computes in float16.
        center = real.mean(dim=0, dtype=torch.float64)
        return generated - center, real - center
    largest = max(float(rows.double().square().sum(dim=1).max()) for rows in (generated, real))
    dtype = torch.float16 if 4 * largest < torch.finfo(torch.float16).max else torch.float32
    return generated.to(dtype), real.to(dtype)


def memberships(generated: Tensor, real: Tensor, *, neighbours: int, memory_mib: int) -> tuple[Tensor, Tensor]:
    """Return which generated images lie in a real ball, bool [N], and which real ones in a generated ball, bool [M].

    The ball of a member of a set reaches its k-th nearest neighbor in the set and includes its boundary. The features
    are those of `prepared`.
    """
    options = {"neighbours": neighbours, "memory_mib": memory_mib}
    generated_radii, real_radii = squared_radii(generated, **options), squared_radii(real, **options)
    in_real = torch.zeros(len(generated), dtype=torch.bool, device=real.device)
    in_generated = torch.zeros(len(real), dtype=torch.bool, device=real.device)
    for rows, squared in squared_distances(generated, real, memory_mib=memory_mib):
        in_real[rows] = (squared <= real_radii).any(dim=1)
        in_generated |= (squared <= generated_radii[rows, None]).any(dim=0)
    return in_real, in_generated


def squared_radii(members: Tensor, *, neighbours: int, memory_mib: int) -> Tensor:
    """Return the squared distance of each member [N, D] to its k-th nearest neighbor other than itself, [N]."""
    radii = torch.empty(len(members), dtype=members.dtype, device=members.device)
    for rows, squared in squared_distances(members, members, memory_mib=memory_mib):
        squared[:, rows].fill_diagonal_(torch.inf)
        radii[rows] = _kth_smallest(squared, neighbours)
    return radii


def _kth_smallest(table: Tensor, k: int) -> Tensor:
    groups = table.shape[1] // _GROUP
    if groups <= k:
        return table.kthvalue(k, dim=1).values
    # The k smallest numbers are in the k groups with the smallest minima. A minimum costs a tenth of a selection.
    grouped = table[:, : groups * _GROUP].unflatten(1, (_GROUP, groups))
    chosen = grouped.amin(dim=1).topk(k, dim=1, largest=False).indices[:, None]
    few = grouped.gather(2, chosen.expand(-1, _GROUP, -1)).flatten(1)
    return torch.cat([few, table[:, groups * _GROUP :]], dim=1).kthvalue(k, dim=1).values


def squared_distances(a: Tensor, b: Tensor, *, memory_mib: int) -> Iterator[tuple[slice, Tensor]]:
    """Yield rows of `a` [N, D] and their squared distances to all rows of `b` [M, D], in chunks.

    Unlike `torch.cdist`, the distance of two copies of an image is exactly 0, and the memory is bounded.
    """
    count = rows_at_a_time(len(b), itemsize=b.element_size(), memory_mib=memory_mib)
    table = _rounded_table if a.dtype == torch.float16 else _table
    a_squared, b_squared = _squared_norms(a), _squared_norms(b)
    for start in range(0, len(a), count):
        rows = slice(start, min(start + count, len(a)))
        yield rows, table(a[rows], b, a_squared=a_squared[rows, None], b_squared=b_squared)


def rows_at_a_time(width: int, *, itemsize: int, memory_mib: int) -> int:
    """Return how many rows of a distance table with `width` columns fit into the memory; at least one."""
    count = max(1, memory_mib * 2**20 // (_TABLES * max(4, itemsize) * width))
    # A multiple of 16: a matrix product may round the last few rows differently from those in groups.
    return max(count - count % 16, min(count, 16))


def _squared_norms(rows: Tensor) -> Tensor:
    return torch.cat([part.square().sum(dim=1) for part in rows.split(_ROWS)])


def _table(a: Tensor, b: Tensor, *, a_squared: Tensor, b_squared: Tensor) -> Tensor:
    """Return the squared distances [N, M] of rows a [N, D] and b [M, D], given their squared norms [N, 1] and [M]."""
    size = a_squared + b_squared
    squared = torch.addmm(size, a, b.T, alpha=-2)
    # Smaller values are rounding errors of copies, whose distance is 0.
    return squared.masked_fill_(squared <= size.mul_(1e-12), 0.0)


def _rounded_table(a: Tensor, b: Tensor, *, a_squared: Tensor, b_squared: Tensor) -> Tensor:
    """Return the same in float32 with the rounding of float16: a product summed in float32 and rounded once."""
    product = (a.float() @ b.float().T).half()
    return (a_squared - 2 * product + b_squared).clamp(min=0).float()
