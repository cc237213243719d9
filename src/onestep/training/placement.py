"""Networks on the device of their rank, with the options of a run that save memory."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import nn

from onestep.autoencoders import Codec, is_latent
from onestep.config.run import Run
from onestep.distributed import Ranks
from onestep.training.frozen import store_frozen
from onestep.training.recompute import recompute_activations
from onestep.training.sharding import shard
from onestep.training.sources import Built


def placed(
    built: Mapping[str, Built], *, codec: Codec, run: Run, frozen: Collection[str], ranks: Ranks
) -> dict[str, nn.Module]:
    """Return networks by role on the device: as wholes, or the parts of denoisers in shards.

    Raises:
        ValueError: An option of the run has nothing to act on, or torch cannot divide a network.
    """
    denoisers = {role: each for role, each in built.items() if each.family == "networks"}
    if run.frozen_precision is not None:
        store_frozen(denoisers, frozen=frozen)
    divided = denoisers if run.shard and ranks.world > 1 else {}
    networks = {
        role: shard(each.network, ranks=ranks) if role in divided else each.network.to(ranks.device)
        for role, each in built.items()
    }
    if run.recompute:
        recompute_activations(networks | ({"codec": codec.network} if is_latent(codec) else {}))
    return networks
