"""The ranks of a run and their collectives: broadcast, average, gather, barrier, maximum."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import torch
from torch import Tensor
from torch import distributed as dist

_STARTUP_LIMIT = timedelta(minutes=10)


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process and its group of `world` processes."""

    rank: int
    world: int
    device: torch.device
    cpu_group: dist.ProcessGroup | None = None  # gloo, for CPU tensors; None for the default group

    @property
    def leads(self) -> bool:
        """Whether this process logs and writes files."""
        return self.rank == 0

    def share_of(self, rows: int) -> int:
        """Return the number of images of a batch on this rank; ValueError if the ranks cannot share it evenly."""
        if rows % self.world:
            raise ValueError(f"batch: got {rows}, expected a multiple of the number of processes, {self.world}")
        return rows // self.world


@contextlib.contextmanager
def joined(environment: Mapping[str, str] | None = None) -> Iterator[Ranks]:
    """Join the process group that RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT describe.

    Without RANK and WORLD_SIZE the run is a single process without a group; with one of them ValueError is raised. The
    backend is NCCL where a CUDA device is visible, else gloo. After an error the process must end.
    """
    environment = os.environ if environment is None else environment
    present = [name for name in ("RANK", "WORLD_SIZE") if name in environment]
    if len(present) == 1:
        raise ValueError(f"environment: got {present[0]} only, expected RANK and WORLD_SIZE together or neither")
    rank, world = int(environment.get("RANK", "0")), int(environment.get("WORLD_SIZE", "1"))
    device, cpu_group = _device(int(environment.get("LOCAL_RANK", "0"))), None
    if world > 1:
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, rank=rank, world_size=world, timeout=_STARTUP_LIMIT)
        if backend == "nccl":
            cpu_group = dist.new_group(backend="gloo", timeout=_STARTUP_LIMIT)
    yield Ranks(rank=rank, world=world, device=device, cpu_group=cpu_group)
    # Not after an error: NCCL would wait here for ranks that wait for this one during a step, and hide the error.
    if world > 1:
        dist.destroy_process_group()


def _device(local_rank: int) -> torch.device:
    """Return the CUDA device of this process, or the CPU without one; switch TF32 off."""
    # As in the reference: TensorFloat-32 would round the fp32 path to 10 bits.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", local_rank if torch.cuda.device_count() > 1 else 0)
    torch.cuda.set_device(device)
    return device


def rank_seed(seed: int, *, world: int, rank: int) -> int:
    """Return the seed of one rank's global generator, derived from the run's seed as in the reference."""
    return int(np.random.RandomState((seed * world + rank) % (1 << 31)).randint(1 << 31))


def broadcast(tensors: Iterable[Tensor], *, ranks: Ranks) -> None:
    """Overwrite `tensors` with those of rank 0."""
    if ranks.world > 1:
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


def average(tensor: Tensor, *, ranks: Ranks) -> Tensor:
    """Replace `tensor` by its mean over the ranks, in place, and return it."""
    if ranks.world > 1:
        dist.all_reduce(tensor)
        tensor /= ranks.world
    return tensor


def gather(tensor: Tensor, *, ranks: Ranks) -> list[Tensor]:
    """Return every rank's `tensor` (same shape and type everywhere), in rank order, on the CPU."""
    if ranks.world == 1:
        return [tensor.cpu()]
    local = tensor.to(ranks.device)
    received = [torch.empty_like(local) for _ in range(ranks.world)]
    dist.all_gather(received, local)
    return [each.cpu() for each in received]


def wait(*, ranks: Ranks) -> None:
    """Wait for all ranks."""
    if ranks.world > 1:
        dist.barrier()


def highest(number: int, *, ranks: Ranks) -> int:
    """Return the maximum of `number` over the ranks; devices are not synchronized."""
    if ranks.world == 1:
        return number
    maximum = torch.tensor(int(number))
    dist.all_reduce(maximum, op=dist.ReduceOp.MAX, group=ranks.cpu_group)
    return int(maximum)
