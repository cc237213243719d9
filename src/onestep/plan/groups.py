"""Groups of jobs for a cluster: the blocks of one model, and several models of a run, in one SLURM job.

A profile states how many by `group-components`: `blocks` of the snapshots of one run and sampler, `chosen` of its
selected snapshots, `teachers` of a teacher. Snapshots and selected ones are apart because a selection needs the numbers
of all snapshots.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from onestep.models import Selected, Snapshot, parse_model
from onestep.plan import Plan

_KINDS = {Snapshot: "blocks", Selected: "chosen"}
_TEACHERS = "teachers"


def of_block(wildcards: Any) -> str | None:
    """Return the group of a job that makes files of a seed block, from its wildcards; None for another job."""
    found = dict(wildcards.items())
    if not {"block", "model"} & found.keys():
        return None
    model, sampler = found["block"].split("/")[:2] if "block" in found else (found["model"], found["sampler"])
    parsed = parse_model(model)
    return _name(_KINDS.get(type(parsed), _TEACHERS), parsed.name, sampler)


def where_requested(workflow: Any) -> Callable[[Any], str | None]:
    """Return the same for the rules of Snakemake's workflow: None, too, where its profile has no `group-components`."""

    def group(wildcards: Any) -> str | None:
        return of_block(wildcards) if workflow.group_settings.group_components else None

    return group


def parents(plan: Plan) -> dict[str, str]:
    """Return the name in a profile of each group."""
    models = [*plan.experiment.runs, *plan.experiment.teachers]
    kinds = [*_KINDS.values(), _TEACHERS]
    return {
        _name(kind, each, sampler): kind for kind in kinds for each in models for sampler in plan.experiment.samplers
    }


def _name(kind: str, model: str, sampler: str) -> str:
    return f"{kind}_{model}_{sampler}"
