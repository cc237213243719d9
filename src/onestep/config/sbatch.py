"""The options of sbatch that `launch.sbatch` may pass on: those that leave the launcher its means.

The launcher writes the batch script, names and finds its jobs, reads their output, and lets SLURM requeue them. Options
that change this are refused, as are those that have a key of their own in `launch`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

from onestep.config.constraints import Apply

_CLUSTERS = "clusters"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_PASSED_ON = frozenset(
    [
        "acctg-freq",
        "batch",
        "bb",
        "begin",
        "clusters",
        "comment",
        "contiguous",
        "core-spec",
        "cores-per-socket",
        "cpu-freq",
        "cpus-per-gpu",
        "deadline",
        "delay-boot",
        "distribution",
        "exclude",
        "exclusive",
        "extra",
        "extra-node-info",
        "gpu-bind",
        "gpu-freq",
        "gpus-per-socket",
        "gres",
        "gres-flags",
        "hint",
        "licenses",
        "mail-type",
        "mail-user",
        "mcs-label",
        "mem-bind",
        "mem-per-cpu",
        "mem-per-gpu",
        "mincpus",
        "network",
        "nice",
        "nodefile",
        "nodelist",
        "ntasks-per-core",
        "ntasks-per-socket",
        "overcommit",
        "oversubscribe",
        "power",
        "prefer",
        "priority",
        "profile",
        "propagate",
        "reboot",
        "reservation",
        "resv-ports",
        "segment",
        "sockets-per-node",
        "spread-job",
        "stepmgr",
        "switches",
        "thread-spec",
        "threads-per-core",
        "time-min",
        "tmp",
        "tres-bind",
        "tres-per-job",
        "tres-per-node",
        "tres-per-socket",
        "tres-per-task",
        "use-min-nodes",
        "wait-all-nodes",
        "wckey",
    ]
)
_OWN_KEYS = {
    **{key: key for key in ("account", "constraint", "nodes", "partition", "qos")},
    "cpus-per-task": "cpus_per_process",
    "gpus": "gpus",
    "gpus-per-node": "gpus",
    "gpus-per-task": "gpus",
    "mem": "memory_gib",
    "no-requeue": "requeues",
    "ntasks": "processes_per_node",
    "ntasks-per-gpu": "processes_per_node",
    "ntasks-per-node": "processes_per_node",
    "requeue": "requeues",
    "signal": "signal_seconds",
    "time": "hours",
}


def given(options: Any) -> Any:
    """Return options without those that are null or false, which means that they are not given."""
    if not isinstance(options, Mapping):
        return options
    return {name: value for name, value in options.items() if value is not None and value is not False}


def _option(name: str) -> str:
    """Return the name of an option that may be passed on, such as `mail-user` or `mail_user`."""
    spelled = name.replace("_", "-")
    if spelled in _PASSED_ON:
        return name
    if spelled in _OWN_KEYS:
        raise ValueError(f"expected it as launch.{_OWN_KEYS[spelled]}. Fix: set that instead")
    if name.startswith("-") and name.lstrip("-").replace("_", "-") in _PASSED_ON:
        raise ValueError(f"expected the name without dashes in front. Fix: write {name.lstrip('-')}")
    raise ValueError(f"expected one of: {', '.join(sorted(_PASSED_ON))}; others would break the launcher")


def _value(value: Any) -> Any:
    """Return the value of an option; true is an option without one."""
    if isinstance(value, (str, int, float)) and value != "":
        return value
    raise ValueError("expected text, a number, or true for an option without a value")


def cluster_of(options: Mapping[str, Any]) -> str | None:
    """Return the SLURM cluster that jobs with these options are submitted to; None for that of this machine."""
    return options.get(_CLUSTERS)


def one_cluster(options: Any) -> Any:
    """Return options whose `clusters` is the name of one cluster, if it is given: jobs are watched there."""
    name = cluster_of(options)
    if name is not None and (not isinstance(name, str) or not _NAME.fullmatch(name) or name == "all"):
        raise ValueError(f"clusters: got {name!r}, expected the name of one cluster, on which the job is watched")
    return options


SbatchOption = Annotated[str, Apply(_option)]
SbatchValue = Annotated[Any, Apply(_value)]
