"""From a run's typed configuration and its input files to everything the loop trains with."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from onestep import components
from onestep.autoencoders import Codec
from onestep.config.run import ResolvedRun, Run, to_document
from onestep.data._batches import InfiniteOrder, OneHot
from onestep.distributed import Ranks
from onestep.objectives import AverageOf, FeatureNetwork, Fresh, Objective, Phase, Pretrained, SampledPairs, TeacherCopy
from onestep.training.adaptive import AdaptiveParameters
from onestep.training.averages import averages_of
from onestep.training.ema import MovingAverage
from onestep.training.execution import Execution, execution_of
from onestep.training.optimizers import Optimizers, build_optimizers
from onestep.training.placement import placed
from onestep.training.sources import Built, ImageShape, Sources, build_fresh, feature_network, pretrained, teacher_copy

# Records that a run writes, whatever its length.
RECORDS = 400


@dataclass(frozen=True, kw_only=True)
class Training:
    """Everything that one run trains with.

    Attributes:
        networks: By role.
        families: Family folder of each role's network.
        optimizers: One per trained role.
        published: Role whose EMA snapshots contain.
        averages: The EMAs of that role by the suffix of their files; "" is the main one.
        followers: EMAs that are networks of the objective, by role.
        frozen: Roles of networks that never change; states contain their digests only.
        states: Of the coupled losses by phase, from the start of the training on.
        configs: Builds a network again, by role, of those that can be published; written into its snapshots.
        pixels: The dataset, uint8 [N, C, H, W]; means and deviations of latents, float32 [N, 2 C, H, W].
        conditions: `conditions[indices]` is the condition of those images; None for an unconditional run.
        order: This rank's endless order of dataset indices.
        snapshots: Counts of images at which a snapshot is taken, at the first step that reaches them.
        micro_batch: Images of one rank that pass through the networks at once; None for all. It saves memory; batch
            norm statistics and dropout masks differ.
    """

    name: str
    run: Run
    phases: tuple[Phase, ...]
    networks: Mapping[str, nn.Module]
    families: Mapping[str, str]
    optimizers: Optimizers
    published: str
    averages: Mapping[str, MovingAverage]
    followers: Mapping[str, MovingAverage]
    frozen: Collection[str]
    controls: AdaptiveParameters
    configs: Mapping[str, Mapping[str, Any]]
    codec: Codec
    pixels: Tensor
    conditions: OneHot | Tensor | None
    order: InfiniteOrder
    snapshots: tuple[int, ...]
    micro_batch: int | None = None
    execution: Execution
    states: dict[str, Mapping[str, Tensor]] = field(default_factory=dict)

    @property
    def record_every(self) -> int:
        """Images between two records, a multiple of the batch size."""
        return max(1, self.run.images // (RECORDS * self.run.batch)) * self.run.batch


def build_networks(run: Run, *, sources: Sources, shape: ImageShape, rank: int = 0) -> dict[str, Built]:
    """Build the networks of a run's objective by role, with the run's seed, on the CPU.

    Raises:
        ValueError: The run lacks a block or a file of a role, or they do not fit together.
    """
    torch.manual_seed(run.seed)
    built: dict[str, Built] = {}
    objective: Objective = components.build("objectives", run.objective)
    for role, origin in objective.networks().items():
        match origin:
            case Pretrained():
                built[role] = pretrained(run, sources=sources, shape=shape)
            case TeacherCopy(dropout=dropout):
                built[role] = teacher_copy(sources=sources, dropout=dropout)
            case Fresh(family=family, maps_of=maps_of):
                # The run's key of that name, or its entry of `networks`.
                chosen = run.networks.get(role, getattr(run, role, None))
                block = to_document(chosen) if dataclasses.is_dataclass(chosen) else None
                own = None if maps_of is None else built[maps_of].network
                built[role] = build_fresh(family, block, run=run, sources=sources, shape=shape, rank=rank, mapped=own)
            case FeatureNetwork():
                built[role] = Built(feature_network(origin, sources=sources), family="backbones")
            case SampledPairs():
                built[role] = Built(sources.pairs(run, shape=shape), family="pairs")
            case AverageOf(role=source):
                if source not in built:
                    raise ValueError(f"{role}: got an average of {source}, expected a network built before it")
                built[role] = built[source]._replace(network=copy.deepcopy(built[source].network))
    return built


def compose(
    resolved: ResolvedRun,
    *,
    built: Mapping[str, Built],
    codec: Codec,
    pixels: Tensor,
    conditions: OneHot | Tensor | None,
    ranks: Ranks,
    micro_batch: int | None = None,
) -> Training:
    """Combine the networks of `build_networks` with a dataset; see `Training` for the arguments.

    Raises:
        ValueError: The device does not support the run's execution settings.
    """
    run = resolved.run
    execution = execution_of(run, device=ranks.device)
    objective: Objective = components.build("objectives", run.objective)
    phases, origins = objective.phases(), objective.networks()
    frozen = [role for role, origin in origins.items() if getattr(origin, "frozen", False)]
    networks = placed(built, codec=codec, run=run, frozen=frozen, ranks=ranks)
    for role in frozen:
        networks[role].requires_grad_(False).eval()
    families = {role: each.family for role, each in built.items()}
    execution.lay_out(networks, families=families)
    published = objective.publishes
    return Training(
        name=resolved.name,
        run=run,
        phases=phases,
        networks=networks,
        families=families,
        optimizers=build_optimizers(
            networks, phases=phases, options=run.optimizers, images=run.images, fused=execution.fused_optimizer
        ),
        published=published,
        averages=averages_of(networks[published], run.ema),
        followers={
            role: MovingAverage(networks[origin.role], half_life=origin.half_life, target=networks[role])
            for role, origin in origins.items()
            if isinstance(origin, AverageOf)
        },
        frozen=frozen,
        controls=AdaptiveParameters(phases),
        configs={role: each.config for role, each in built.items() if each.config is not None},
        codec=codec,
        pixels=pixels,
        conditions=conditions,
        order=InfiniteOrder(size=len(pixels), seed=run.seed, world=ranks.world, rank=ranks.rank),
        snapshots=resolved.snapshots,
        micro_batch=run.micro_batch if micro_batch is None else micro_batch,
        execution=execution,
    )
