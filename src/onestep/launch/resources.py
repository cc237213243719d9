"""The resources of a training job: for its batch script, and as options of sbatch for `onestep doctor`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from onestep.config.sections import Launch


def resources(site: Launch) -> dict[str, Any]:
    """Return the resources of a job by submitit's names of sbatch's options, without `launch.sbatch`."""
    count = f"{site.gpu_type}:{site.processes_per_node}" if site.gpu_type else str(site.processes_per_node)
    gpus = {"gres": {"gres": f"gpu:{count}"}, "gpus": {"gpus_per_node": count}, "none": {}}[site.gpus]
    options = {
        **{name: getattr(site, name) for name in ("partition", "account", "qos", "constraint")},
        "mem": None if site.memory_gib is None else f"{site.memory_gib}G",
        **gpus,
        "nodes": site.nodes,
        "ntasks_per_node": site.processes_per_node,
        "cpus_per_task": site.cpus_per_process,
        "time": max(1, math.ceil(site.hours * 60)),  # in minutes; 0 would mean no limit
    }
    return {name: value for name, value in options.items() if value is not None}


def words(options: Mapping[str, Any]) -> list[str]:
    """Return options by submitit's names as arguments of sbatch; True means an option without a value."""
    named = {name.replace("_", "-"): value for name, value in options.items()}
    return [f"--{name}" if value is True else f"--{name}={value}" for name, value in named.items()]
