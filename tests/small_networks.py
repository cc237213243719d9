"""Small networks of the recipes' kinds, and what training steps do to each of their parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from onestep.classifiers import build_classifier
from onestep.config.run import Optimizer
from onestep.discriminators._backbones import classifier_backbone, timm_backbone
from onestep.discriminators.projected import Projected
from onestep.distributed import Ranks
from onestep.networks import build_denoiser
from onestep.objectives.d2o import D2O
from onestep.training.ema import MovingAverage, ema_decay
from onestep.training.execution import Execution
from onestep.training.optimizers import build_optimizers
from onestep.training.sources import freeze
from onestep.training.step import StepData, train_step

FAMILIES = {"generator": "networks", "discriminator": "discriminators"}
_ROWS, _CLASSES = 4, 3
_OBJECTIVE = {"loss": "non_saturating", "sigma": 80.0, "rows_per_rank": 4.0, "r1_gamma": 1.0, "r1_every": 2}
# With an eps like the gradients Adam's update is smooth in them; with the published one, 1e-8, rounding reverses the
# update of an entry whose gradient is near zero.
_ADAM = Optimizer(lr=1e-3, betas=(0.0, 0.99), eps=0.1)
_DENOISERS: Mapping[str, Mapping[str, Any]] = {
    "song": {"model_type": "SongUNet", "img_resolution": 16, "img_channels": 1, "model_channels": 8},
    "adm": {"model_type": "DhariwalUNet", "img_resolution": 32, "img_channels": 3, "model_channels": 32},
}


def small_networks(kind: str) -> dict[str, nn.Module]:
    """Return generator and discriminator in training mode.

    `song` is unconditional, with a classifier of this package as backbone, and freezes as D2O-F does; `adm` has classes
    and a network of timm, whose batch norms are folded.
    """
    torch.manual_seed(0)
    classes = 0 if kind == "song" else _CLASSES
    shape = {"channel_mult": (1, 2), "num_blocks": 1, "attn_resolutions": (8, 16), "dropout": 0.0}
    generator = build_denoiser({**_DENOISERS[kind], **shape, "label_dim": classes})
    with torch.no_grad():  # otherwise the last layer of each block is almost zero
        for parameter in generator.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    if kind == "song":
        freeze(generator, ["conv", "proj"])
        block = {"name": "convnet", "resolution": 16, "channels": 1, "classes": 3, "width": 8}
        backbone, resolution = classifier_backbone(build_classifier(block), channels=1), 16
    else:
        import timm

        name = "test_efficientnet.r160_in1k"
        backbone, resolution = timm_backbone(timm.create_model(name, pretrained=False), name=name), 64
    discriminator = Projected(
        backbones={"eye": backbone}, channels=8, resolution=resolution, classes=classes, batch_norm="probed", seed=3
    )
    return {"generator": generator.train(), "discriminator": discriminator.train()}


def traced(
    networks: Mapping[str, nn.Module],
    execution: Execution,
    *,
    device: torch.device,
    steps: int = 1,
    micro_batch: int | None = None,
    r1_gradient: str = "forward_mode",
) -> dict[str, Tensor]:
    """Train for some steps; return, on the CPU, gradient and update of each parameter in each phase of each step.

    The generator's EMA must follow its weights, and all of these have the memory layout of the parameters.
    """
    flags = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [each.allow_tf32 for each in flags]
    try:
        for each in flags:
            each.allow_tf32 = execution.tf32
        return _traced(networks, execution, device, steps, micro_batch, r1_gradient)
    finally:
        for each, allowed in zip(flags, before, strict=True):
            each.allow_tf32 = allowed


def _traced(
    networks: Mapping[str, nn.Module],
    execution: Execution,
    device: torch.device,
    steps: int,
    micro_batch: int | None,
    r1_gradient: str,
) -> dict[str, Tensor]:
    networks = {role: network.to(device) for role, network in networks.items()}
    execution.lay_out(networks, families=FAMILIES)
    phases = D2O(**_OBJECTIVE, r1_gradient=r1_gradient).phases()
    optimizers = build_optimizers(
        networks, phases=phases, options=dict.fromkeys(networks, _ADAM), fused=execution.fused_optimizer
    )
    average = MovingAverage(networks["generator"], half_life=32)
    followed = {name: value.clone() for name, value in average.state().items()}
    wrapped = execution.wrapped(networks, families=FAMILIES)
    ranks, found = Ranks(rank=0, world=1, device=device), {}
    for step in range(steps):
        execution.begin_step()
        for phase in phases:
            named = {name: p for name, p in networks[phase.trains].named_parameters() if _is_in(p, optimizers)}
            before = {name: p.detach().clone() for name, p in named.items()}
            train_step(
                (phase,),
                networks=networks,
                wrapped=wrapped,
                optimizers=optimizers,
                data=_data(networks["generator"], step=step, device=device, micro_batch=micro_batch),
                ranks=ranks,
            )
            for name, parameter in named.items():
                assert parameter.grad is not None and parameter.grad.stride() == parameter.stride()
                key = f"step {step}, {phase.name}, {name}"
                found[f"gradient: {key}"] = parameter.grad.detach().cpu().clone()
                found[f"update: {key}"] = (parameter.detach() - before[name]).cpu()
        average.update(images_seen=_ROWS * step, batch=_ROWS)
        for name, parameter in networks["generator"].named_parameters():
            if name in followed:
                followed[name].lerp_(parameter.detach(), 1 - ema_decay(0, batch=_ROWS, half_life=32, ramp_up=0))
                torch.testing.assert_close(average.state()[name], followed[name], rtol=1e-6, atol=1e-7)
                assert average.state()[name].stride() == parameter.stride()
    return found


def _is_in(parameter: nn.Parameter, optimizers: Mapping[str, Any]) -> bool:
    return any(parameter is each for optimizer in optimizers.values() for each in optimizer.parameters)


def _data(generator: nn.Module, *, step: int, device: torch.device, micro_batch: int | None) -> StepData:
    chosen = torch.Generator().manual_seed(step)
    images = torch.rand(_ROWS, generator.img_channels, *[generator.img_resolution] * 2, generator=chosen) * 2 - 1
    classes = generator.label_dim
    condition = torch.eye(classes)[torch.arange(_ROWS) % classes].to(device) if classes else None
    return StepData(
        images=images.to(device),
        condition=condition,
        rows=range(step * _ROWS, (step + 1) * _ROWS),
        seed=0,
        images_seen=_ROWS * step,
        micro_batch=micro_batch,
    )


def far_apart(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], *, share: float) -> dict[str, float]:
    """Return the tensors that differ by more than a share of their norm, with that share.

    A tensor that is near zero beside those of its phase, such as the gradient of a bias before a batch norm, counts
    with 0.3 times their norm. The update of a parameter whose gradient is so is not compared: Adam magnifies rounding.
    """
    assert found.keys() == wanted.keys()
    groups: dict[str, list[Tensor]] = {}
    for name, value in wanted.items():
        groups.setdefault(name.rpartition(",")[0], []).append(value.flatten())
    typical = {group: torch.cat(values).square().mean().sqrt() for group, values in groups.items()}
    shares = {}
    for name, value in wanted.items():
        assert torch.isfinite(found[name]).all(), name
        gradient = f"gradient: {name.removeprefix('update: ')}"
        size = wanted[gradient].square().mean().sqrt() if gradient != name and gradient in wanted else torch.inf
        if size < 0.01 * typical.get(gradient.rpartition(",")[0], 0.0):
            continue
        norm = value.norm() + 0.3 * typical[name.rpartition(",")[0]] * value.numel() ** 0.5
        shares[name] = float((found[name] - value).norm() / norm)
    return {name: each for name, each in shares.items() if each > share}
