"""The ranks of a run and their collectives: broadcast, average, sum, gather, barrier, maximum; tensors in shards."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch import distributed as dist

from onestep import gpus
from onestep.arithmetic import products

_STARTUP_LIMIT = timedelta(minutes=10)
# Of later collectives: meanwhile rank 0 may write a state of GBs to a slow disk, or ranks compile their networks.
_COLLECTIVE_LIMIT = timedelta(hours=1)
_CONNECTING = timedelta(seconds=2)  # one try; between two, a request to stop is noticed
_RESOLVING_SECONDS = 10.0
_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")

_logger = logging.getLogger(__name__)


class Left(Exception):
    """A request to stop came before the first step, such as while the ranks met."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """The place of a process in a group that a launcher started."""

    rank: int
    world: int
    local_rank: int
    address: str
    port: int

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Place | None:
        """Return the place by RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT.

        None if one is missing or they contradict each other: then they are left over from something else.
        """
        try:
            rank, world, local_rank, port = (int(environment[n]) for n in _VARIABLES if n != "MASTER_ADDR")
            place = cls(rank=rank, world=world, local_rank=local_rank, address=environment["MASTER_ADDR"], port=port)
        except (KeyError, ValueError):
            return None
        fits = 0 <= local_rank <= rank < world and place.address and 0 < port < 1 << 16
        return place if fits else None


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
def joined(
    environment: Mapping[str, str] | None = None, *, stop: Callable[[], bool] = lambda: False
) -> Iterator[Ranks]:
    """Join the process group that the environment describes, `Place.of`; without one this process is alone.

    The backend is NCCL where a CUDA device is visible, else gloo. Inside, TF32 is off as in the reference, unless a
    block requests it. After an error the process must end.

    Raises:
        Left: A request to stop came while the ranks met.
        ValueError: They did not meet: no such host, a port in use, a rank that did not come, or fewer GPUs than ranks.
    """
    environment = os.environ if environment is None else environment
    place = Place.of(environment)
    if place is None and (found := [name for name in ("RANK", "WORLD_SIZE") if name in environment]):
        _logger.warning("environment: %s ignored; ranks have all of %s", ", ".join(found), ", ".join(_VARIABLES))
    rank, world, local_rank = (0, 1, 0) if place is None else (place.rank, place.world, place.local_rank)
    local_world = environment.get("LOCAL_WORLD_SIZE", "") if place is not None and world > 1 else ""
    device, cpu_group = _device(local_rank, local_world=int(local_world) if local_world.isdecimal() else None), None
    if place is not None and world > 1:
        backend = "nccl" if device.type == "cuda" else "gloo"
        store = _met(place, environment=environment, stop=stop)
        dist.init_process_group(
            backend,
            store=store,
            rank=rank,
            world_size=world,
            timeout=_COLLECTIVE_LIMIT,
            device_id=device if backend == "nccl" else None,
        )
        if backend == "nccl":
            cpu_group = dist.new_group(backend="gloo", timeout=_COLLECTIVE_LIMIT)
    with products(tf32=False):
        yield Ranks(rank=rank, world=world, device=device, cpu_group=cpu_group)
    # Not after an error: NCCL would wait here for ranks that wait for this one during a step, and hide the error.
    if world > 1:
        dist.destroy_process_group()


def _met(place: Place, *, environment: Mapping[str, str], stop: Callable[[], bool]) -> dist.Store:
    """Return the store of the group once all ranks have come.

    Torch's own rendezvous waits in one call, in which Python notices no signal.
    """
    where, deadline = f"{place.address}:{place.port}", time.monotonic() + _STARTUP_LIMIT.total_seconds()
    _check_address(place, stop=stop)
    # torchrun's agent serves the store of its ranks.
    by_agent = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store: dist.Store | None = None
    come = 0
    while come < place.world:
        if stop():
            raise Left
        if time.monotonic() > deadline:
            came = f"{come} of {place.world} ranks" if come else "no answer of rank 0"
            raise ValueError(f"{where}: got {came} in {_STARTUP_LIMIT}, expected all. Fix: see the logs of the others")
        try:
            if store is None:
                store = _store(place, serves=place.rank == 0 and not by_agent)
                if by_agent:
                    attempt = environment.get("TORCHELASTIC_RESTART_COUNT", "0")
                    store = dist.PrefixStore(f"/worker/attempt_{attempt}", store)
                store.add("come", 1)
            come = store.add("come", 0)
        except dist.DistError as error:
            if store is not None:
                time.sleep(1.0)  # a request to stop may have reached rank 0 first
                if stop():
                    raise Left from error
                raise ValueError(f"{where}: rank 0 left while the ranks met. Fix: see its log") from error
        time.sleep(0.1)
    assert store is not None
    store.set_timeout(_STARTUP_LIMIT)
    return dist.PrefixStore("default_pg", store)


def _store(place: Place, *, serves: bool) -> dist.Store:
    """Connect to the store of a group, or serve it."""
    try:
        return dist.TCPStore(
            place.address, place.port, place.world, is_master=serves, timeout=_CONNECTING, wait_for_workers=False
        )
    except dist.DistNetworkError as error:
        if not serves:
            raise
        found = f"{place.address}:{place.port}: got a port in use"
        raise ValueError(f"{found}, expected a free one for rank 0. Fix: start again with another port") from error


def _check_address(place: Place, *, stop: Callable[[], bool]) -> None:
    """Raise ValueError unless this machine finds the address of rank 0, which may take some seconds."""
    deadline = time.monotonic() + _RESOLVING_SECONDS
    while not stop():
        try:
            socket.getaddrinfo(place.address, place.port)
        except (OSError, UnicodeError) as error:
            if time.monotonic() < deadline:
                time.sleep(1.0)
                continue
            found = f"got {place.address!r}, which {socket.gethostname()} cannot resolve ({error})"
            fix = "Fix: name resolution between the nodes, or train on one node"
            raise ValueError(f"MASTER_ADDR: {found}, expected the host of rank 0. {fix}") from error
        return


def _device(local_rank: int, *, local_world: int | None) -> torch.device:
    """Return the CUDA device of this process, or the CPU without one.

    Without the number of this machine's ranks, `local_world`, a single visible GPU is one that SLURM bound to the rank.
    ValueError: There are fewer GPUs than ranks.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    count = torch.cuda.device_count()
    needed = local_world or (1 if count == 1 else local_rank + 1)
    if found := gpus.problem(needed, gpus=count):
        raise ValueError(found)
    device = torch.device("cuda", local_rank if count > 1 else 0)
    torch.cuda.set_device(device)
    return device


def rank_seed(seed: int, *, world: int, rank: int) -> int:
    """Return the seed of one rank's global generator, derived from the run's seed as in the reference."""
    return int(np.random.RandomState((seed * world + rank) % (1 << 31)).randint(1 << 31))


def broadcast(tensors: Iterable[Tensor], *, ranks: Ranks) -> None:
    """Overwrite `tensors` with those of rank 0; those in shards stay."""
    if ranks.world > 1:
        for tensor in tensors:
            if not is_shard(tensor):
                dist.broadcast(tensor, src=0, group=ranks.cpu_group if tensor.device.type == "cpu" else None)


def average(tensor: Tensor, *, ranks: Ranks) -> Tensor:
    """Replace `tensor` by its mean over the ranks, in place, and return it."""
    if ranks.world > 1:
        dist.all_reduce(tensor)
        tensor /= ranks.world
    return tensor


def total(tensor: Tensor, *, ranks: Ranks) -> Tensor:
    """Replace `tensor` by its sum over the ranks, in place, and return it."""
    if ranks.world > 1:
        dist.all_reduce(tensor)
    return tensor


def is_shard(tensor: Tensor) -> bool:
    """Return whether the ranks hold a tensor in parts: a `DTensor` of torch, whose import takes half a second."""
    return hasattr(tensor, "device_mesh")


def whole(tensors: Mapping[str, Tensor], *, kept: bool = True) -> dict[str, Tensor]:
    """Return tensors by name, those in shards as whole ones on the CPU; every rank must call this.

    A rank with `kept` false returns nothing, and holds at most one whole tensor at a time.
    """
    found = {}
    for name, tensor in tensors.items():
        complete = cast(Any, tensor.detach()).full_tensor() if is_shard(tensor) else tensor
        if kept:
            found[name] = complete.cpu() if is_shard(tensor) else complete
    return found


def own_part(shards: Tensor, tensor: Tensor) -> Tensor:
    """Return what this rank has of a tensor that is in shards as `shards` is; all of it if that is whole.

    A tensor of another shape is returned as it is.
    """
    if is_shard(tensor):
        return cast(Any, tensor).to_local()
    if not is_shard(shards) or tensor.shape != shards.shape:
        return tensor
    mesh = cast(Any, shards).device_mesh
    parts, rank = tensor.chunk(mesh.size(), dim=0), mesh.get_local_rank()
    return parts[rank] if rank < len(parts) else tensor[:0]


def own_parts(tensors: Mapping[str, Tensor]) -> list[Tensor]:
    """Return what this rank has of each tensor."""
    return [own_part(each, each) for each in tensors.values()]


def like(shards: Tensor, part: Tensor) -> Tensor:
    """Return the part of this rank as one of a tensor in shards as `shards` is; the same if that is whole."""
    if not is_shard(shards):
        return part
    from torch.distributed.tensor import DTensor

    mesh, placements = cast(DTensor, shards).device_mesh, cast(DTensor, shards).placements
    return DTensor.from_local(part, mesh, placements, run_check=False, shape=shards.shape, stride=shards.stride())


def load(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load a state dict of whole tensors, strictly; a module in shards takes the part of this rank."""
    own = {name: each for name, each in module.state_dict().items() if is_shard(each)}
    parts = {
        name: like(own[name], own_part(own[name], each)) if name in own and each.shape == own[name].shape else each
        for name, each in tensors.items()
    }
    module.load_state_dict(parts, strict=True)


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
