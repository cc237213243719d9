"""Denoisers in shards: `shard: true` gives each rank a part of every weight, gradient, moment and average (FSDP2).

torch's `fully_shard` (https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html) divides each tensor along
its first dimension, gathers the weights of a block before it runs, and adds up its gradients after its backward pass.
All else of a step works on the part of the rank, as plain tensors. Files have whole tensors, as without shards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from onestep import distributed
from onestep.distributed import Ranks, is_shard, like, own_part


def shard(network: nn.Module, *, ranks: Ranks) -> nn.Module:
    """Give each rank its part of a denoiser on the CPU, whose weights are those of rank 0, and return it on the device.

    Blocks are the parts that can recompute their activations (`onestep.networks.Network`). Numbers without a dimension,
    which `fully_shard` does not take, stay whole on each rank.

    Raises:
        ValueError: torch cannot divide the network.
    """
    # Here, because most trainings do without, and importing takes half a second.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    distributed.broadcast(network.state_dict().values(), ranks=ranks)
    mesh = init_device_mesh(ranks.device.type, (ranks.world,))
    single = {parameter for parameter in network.parameters() if parameter.ndim == 0}
    for parameter in single:
        parameter.data = parameter.data.to(ranks.device)
    blocks = [part for part in network.modules() if hasattr(part, "recompute") and part is not network]
    try:
        for part in (*blocks, network):
            # Also the last one: phases without a gradient would keep it whole.
            fully_shard(part, mesh=mesh, reshard_after_forward=True, ignored_params=single)
    except (ValueError, NotImplementedError) as error:
        found = " ".join(str(error).split())
        raise ValueError(f"shard: got a network that torch cannot divide ({found}). Fix: remove shard") from error
    return network


def leaves_of(parameters: Sequence[nn.Parameter]) -> list[nn.Parameter] | None:
    """Return what a backward pass computes gradients of; None, all that require one, for a network in shards.

    Its passes see the gathered weights in place of the parameters.
    """
    return None if any(is_shard(each) for each in parameters) else list(parameters)


@dataclass(frozen=True, kw_only=True)
class Shards:
    """The trained parameters of a network in shards.

    Attributes:
        whole: As the network has them; those without a dimension are plain and the same on all ranks.
        own: The part of this rank, which its optimizer updates in place.
    """

    whole: list[nn.Parameter]
    own: list[nn.Parameter]
    ranks: Ranks

    def settle(self) -> tuple[Tensor, int]:
        """Replace gradient entries that are not finite, on all ranks; return their and the whole number.

        `fully_shard` has averaged the gradients of shards; others are averaged here.
        """
        gradients = [self._gradient(whole, own) for whole, own in zip(self.whole, self.own, strict=True)]
        shared = [is_shard(each) for each in self.whole]
        replaced = torch.zeros((), dtype=torch.int64, device=self.ranks.device)
        settled: dict[int, Tensor] = {}
        for in_parts in (True, False):
            chosen = [index for index, each in enumerate(shared) if each == in_parts]
            if not chosen:
                continue
            flat = torch.cat([gradients[index].flatten() for index in chosen])
            if not in_parts:
                distributed.average(flat, ranks=self.ranks)
            odd = flat.numel() - torch.isfinite(flat).sum()
            replaced = replaced + (distributed.total(odd, ranks=self.ranks) if in_parts else odd)
            torch.nan_to_num_(flat, nan=0.0, posinf=1e5, neginf=-1e5)  # as in `settle_gradients`
            parts = flat.split([gradients[index].numel() for index in chosen])
            settled |= dict(zip(chosen, parts, strict=True))
        for index, (whole, own) in enumerate(zip(self.whole, self.own, strict=True)):
            whole.grad = None
            own.grad = settled[index].view_as(own)
        return replaced, sum(each.numel() for each in self.whole)

    @staticmethod
    def _gradient(whole: nn.Parameter, own: nn.Parameter) -> Tensor:
        if whole.grad is None:
            return torch.zeros_like(own)
        return own_part(whole.grad, whole.grad)

    def clip(self, limit: float) -> None:
        """Scale the gradients down to a norm of all ranks, as `torch.nn.utils.clip_grad_norm_` does."""
        squares = torch.zeros((), device=self.ranks.device)
        for in_parts in (True, False):
            pairs = zip(self.whole, self.own, strict=True)
            grads = [own.grad for whole, own in pairs if is_shard(whole) == in_parts and own.grad is not None]
            part = nn.utils.get_total_norm(grads).square() if grads else squares.new_zeros(())
            squares = squares + (distributed.total(part, ranks=self.ranks) if in_parts else part)
        nn.utils.clip_grads_with_norm_(self.own, limit, squares.sqrt())

    def whole_state(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the optimizer's tensors by "parameter index.name" as shards of the parameter's shape."""
        return {key: like(self._of(key), each) if each.ndim else each for key, each in tensors.items()}

    def own_state(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the part of this rank of an optimizer's whole tensors."""
        return {key: own_part(self._of(key), each) if each.ndim else each for key, each in tensors.items()}

    def _of(self, key: str) -> nn.Parameter:
        return self.whole[int(key.partition(".")[0])]


def shards_of(parameters: Sequence[nn.Parameter]) -> Shards | None:
    """Return the shards of trained parameters; None if they are whole."""
    if leaves_of(parameters) is not None:
        return None
    own = [nn.Parameter(own_part(each, each.detach())) if is_shard(each) else each for each in parameters]
    first: Any = next(each for each in parameters if is_shard(each))
    mesh = first.device_mesh
    ranks = Ranks(rank=mesh.get_local_rank(), world=mesh.size(), device=own[0].device)
    return Shards(whole=list(parameters), own=own, ranks=ranks)


def clip_gradients(trained: Sequence[nn.Parameter] | Shards, limit: float) -> None:
    """Scale gradients down to a norm, that of all ranks for shards."""
    if isinstance(trained, Shards):
        trained.clip(limit)
    else:
        nn.utils.clip_grad_norm_(trained, limit)
