"""From a run.yaml and its input files to everything the loop trains with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from onestep import plugins
from onestep.checkpoints.snapshot import read_snapshot
from onestep.classifiers import build_classifier
from onestep.data._cache import OneHot, decoded
from onestep.data._order import InfiniteOrder
from onestep.data.image_zip import ImageZip
from onestep.discriminators import build_discriminator
from onestep.distributed import Ranks
from onestep.networks import build_denoiser, frozen_parameters, one_step_config, teacher_weights_for
from onestep.training.controls import Controls
from onestep.training.ema import MovingAverage
from onestep.training.loop import Training
from onestep.training.optimizers import build_optimizers
from onestep.training.speed import speed_of


def assemble(
    document: Mapping[str, Any],
    *,
    data: Path,
    teacher: Path | None,
    backbones: Mapping[str, Path],
    class_embeddings: Path | None = None,
    ranks: Ranks,
    rows_per_pass: int | None = None,
    cache: Path | None = None,
) -> Training:
    """Build a run.

    Args:
        document: The resolved run, as run.yaml holds it.
        data: The dataset archive.
        teacher: Snapshot the generator starts from; None where it starts from scratch.
        backbones: Files of the networks the discriminator looks through, by the name the config gives them.
        class_embeddings: The table with which the discriminator's class tables start; None for random ones.
        ranks: This process among those of the run.
        rows_per_pass: Most rows of a rank that pass the networks at once; None for all.
        cache: Folder for decoded pixels that memory has no room for; None keeps all in memory.

    Raises:
        ValueError: A file does not fit the config, or `rows_per_pass` is not positive.
    """
    if rows_per_pass is not None and rows_per_pass < 1:
        raise ValueError(f"rows per pass {rows_per_pass}: expected a positive number; leave it out for all at once")
    ranks.share_of(document["batch"])
    archive = ImageZip(source=data)
    torch.manual_seed(document["seed"])
    config, published = _published(document, archive=archive, teacher=teacher)
    discriminator = None
    if document.get("discriminator") is not None:
        discriminator = build_discriminator(
            document["discriminator"],
            backbones=backbones,
            timm=document.get("timm"),
            class_embeddings=class_embeddings,
            classes=archive.classes if document["conditional"] else 0,
            seed=document["seed"],
            rank=ranks.rank,
        )
    return compose(
        document,
        network=config,
        published=published,
        discriminator=discriminator,
        pixels=decoded(archive, cache=cache),
        labels=OneHot(archive.labels(), classes=archive.classes) if document["conditional"] else None,
        ranks=ranks,
        rows_per_pass=rows_per_pass,
    )


def compose(
    document: Mapping[str, Any],
    *,
    network: Mapping[str, Any],
    published: nn.Module,
    discriminator: nn.Module | None,
    pixels: Tensor,
    labels: OneHot | Tensor | None,
    ranks: Ranks,
    rows_per_pass: int | None = None,
) -> Training:
    """Put a run together from its networks and its data.

    Args:
        document: The resolved run.
        network: Config of the role that snapshots publish.
        published: The network of that role, frozen where the run says.
        discriminator: Its opponent, where the objective wants one.
        pixels: The dataset, uint8 [N, C, H, W].
        labels: Its classes, one-hot float32 [N, K]; None for an unconditional run.
        ranks: This process among those of the run.
        rows_per_pass: See `assemble`.

    Raises:
        ValueError: The device cannot compute as the run says.
    """
    speed = speed_of(document, device=ranks.device)
    objective = _component("objectives", document["objective"])
    players: dict[str, nn.Module] = {objective.publishes: published}
    if discriminator is not None:
        players["discriminator"] = discriminator
    for player in players.values():
        player.to(ranks.device)
    phases = objective.phases()
    return Training(
        name=document["run"],
        phases=phases,
        players=players,
        optimizers=build_optimizers(
            players, phases=phases, options=document["optimizers"], fused=speed.fused_optimizer
        ),
        published=published,
        average=_average(published, document["ema"], half_life=document["ema"]["half_life"]),
        other_averages={each: _average(published, document["ema"], half_life=each) for each in _others(document)},
        controls=Controls(phases),
        network=network,
        pixels=pixels,
        labels=labels,
        order=InfiniteOrder(size=len(pixels), seed=document["seed"], world=ranks.world, rank=ranks.rank),
        batch=document["batch"],
        images=document["images"],
        snapshots=tuple(document["snapshots"]),
        seed=document["seed"],
        non_finite_limit=document["non_finite_limit"],
        rows_per_pass=rows_per_pass,
        speed=speed,
    )


def _component(family: str, block: Mapping[str, Any]) -> Any:
    return plugins.load(family, block["name"])(**{key: value for key, value in block.items() if key != "name"})


def _average(published: nn.Module, options: Mapping[str, Any], *, half_life: float) -> MovingAverage:
    return MovingAverage(published, half_life=half_life, ramp_up=options["ramp_up"])


def _others(document: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the further half-lives; a run.yaml of an older version names none."""
    return tuple(document["ema"].get("others", ()))


def _published(
    document: Mapping[str, Any], *, archive: ImageZip, teacher: Path | None
) -> tuple[dict[str, Any], nn.Module]:
    """Return the config and the network of the role that snapshots publish, frozen where the run says."""
    if document.get("classifier") is not None:
        config = {
            **document["classifier"],
            "resolution": archive.resolution,
            "channels": archive.channels,
            "classes": archive.classes,
        }
        return config, build_classifier(config)
    if teacher is not None:
        config, network = _from_teacher(document, archive=archive, teacher=teacher)
    else:
        shape = {
            "img_resolution": archive.resolution,
            "img_channels": archive.channels,
            "label_dim": archive.classes if document["conditional"] else 0,
        }
        config = {**document["network"], **shape}
        network = build_denoiser(config)
    freeze(network, document.get("freeze") or ())
    return config, network


def _from_teacher(document: Mapping[str, Any], *, archive: ImageZip, teacher: Path) -> tuple[dict[str, Any], nn.Module]:
    """Return the generator that begins as the teacher."""
    snapshot = read_snapshot(teacher)
    config = one_step_config(snapshot.config, preconditioning=document["preconditioning"], dropout=document["dropout"])
    expected = {"img_resolution": archive.resolution, "img_channels": archive.channels}
    for key, value in expected.items():
        if config[key] != value:
            raise ValueError(
                f"{teacher}: its {key} is {config[key]}, the dataset's is {value}; name a teacher of this dataset"
            )
    classes = config.get("label_dim", 0)
    if bool(classes) != document["conditional"]:
        raise ValueError(
            f"{teacher}: knows {classes} classes, but the run says conditional: {str(document['conditional']).lower()}"
        )
    network = build_denoiser(config)
    network.load_state_dict(teacher_weights_for(network, snapshot.state_dict), strict=True)
    return config, network


def freeze(network: nn.Module, patterns: Any) -> None:
    """Hold the parameters the run's patterns name, in D2O-F most of the convolutions."""
    frozen = set(frozen_parameters([name for name, _ in network.named_parameters()], tuple(patterns)))
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name not in frozen)
