"""Execution options of a run: number types, compilation, and what saves memory; each has something to act on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from onestep.config.blocks import Origin
from onestep.config.messages import Place, Problem
from onestep.config.run import Run


def execution_problems(run: Run, *, declared: Mapping[str, Origin], place: Place) -> Iterator[Problem]:
    """Yield the problems of a run's execution options; `declared` are its objective's networks, none if not known."""
    present = {"generator": run.classifier is None, "discriminator": run.discriminator is not None}
    for role in (role for role in present if not present[role]):
        if getattr(run.precision, role) != "float32":
            yield Problem((*place, "precision", role), f"got bfloat16, and the run has no {role}. Fix: remove it")
    if run.recompute and run.classifier is not None:
        yield Problem((*place, "recompute"), "got true, expected false for a classifier, which has no such blocks")
    yield from _storage_problems(run, declared=declared, place=place)
    yield from _shard_problems(run, place=place)
    if run.compile.cuda_graphs and not run.compile.networks:
        alone = "got true, expected false without `networks: true`: CUDA graphs record compiled networks"
        yield Problem((*place, "compile", "cuda_graphs"), alone)
    for role, optimizer in run.optimizers.items():
        if run.compile.fused_optimizer and optimizer.name == "radam":
            alone = f"got true, and torch has no fused {optimizer.name}, the optimizer of the {role}"
            yield Problem((*place, "compile", "fused_optimizer"), alone)


def _storage_problems(run: Run, *, declared: Mapping[str, Origin], place: Place) -> Iterator[Problem]:
    """Yield a problem where `frozen_precision` has no frozen denoiser, or part of one, to store."""
    has_copy = any(origin.kind == "TeacherCopy" and origin.frozen for origin in declared.values())
    if run.frozen_precision is not None and not run.freeze and declared and not has_copy:
        none = "and the run has neither `freeze` nor a frozen copy of its teacher. Fix: remove it"
        yield Problem((*place, "frozen_precision"), f"got {run.frozen_precision}, {none}")


def _shard_problems(run: Run, *, place: Place) -> Iterator[Problem]:
    """Yield a problem for each option that does not go with `shard`."""
    if not run.shard:
        return
    if run.classifier is not None:
        yield Problem((*place, "shard"), "got true, expected false for a classifier: denoisers are divided")
    for name in ("networks", "channels_last"):
        if getattr(run.compile, name):
            fix = "Fix: remove one of them" + (", or `fast`" if run.fast and name == "networks" else "")
            yield Problem((*place, "compile", name), f"got true, expected false with `shard: true`. {fix}")
