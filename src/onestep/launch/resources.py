"""What a training's job asks of SLURM: the same words in its batch script and where the doctor tries them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def resources(site: Any) -> dict[str, Any]:
    """Return what a job asks for, by submitit's names of sbatch's options; `launch.sbatch` is not among it.

    Args:
        site: What `launch` of config.yaml says of a run.
    """
    asked = {
        **place(site),
        "mem": None if site.memory_gib is None else f"{site.memory_gib}G",
        **_gpus(site),
        "nodes": site.nodes,
        "ntasks_per_node": site.processes_per_node,
        "cpus_per_task": site.cpus_per_process,
        "time": minutes(site.hours),
    }
    return {name: value for name, value in asked.items() if value is not None}


def place(site: Any) -> dict[str, str]:
    """Return the part of it that says where a job goes and who pays for it."""
    names = ("partition", "account", "qos", "constraint")
    return {name: value for name in names if (value := getattr(site, name)) is not None}


def minutes(hours: float) -> int:
    """Return a time limit as SLURM counts it, at least that long; 0 would be no limit."""
    return max(1, math.ceil(hours * 60))


def words(asked: Mapping[str, Any]) -> list[str]:
    """Return options of sbatch by submitit's names as words of its command line; True stands for one without value."""
    named = {name.replace("_", "-"): value for name, value in asked.items()}
    return [f"--{name}" if value is True else f"--{name}={value}" for name, value in named.items()]


def _gpus(site: Any) -> Mapping[str, str]:
    """Return how a job asks for one GPU a process."""
    kind = "" if site.gpu_type is None else f"{site.gpu_type}:"
    asked = f"{kind}{site.processes_per_node}"
    return {"gres": {"gres": f"gpu:{asked}"}, "gpus": {"gpus_per_node": asked}, "none": {}}[site.gpus]
