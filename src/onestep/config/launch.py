"""Execution settings of config.yaml: jobs, storage, reruns. Changing them never triggers training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from onestep.config.constraints import Apply, Count, Natural, Options, Positive, RunName, Text, empty, frozen


@dataclass(frozen=True, kw_only=True)
class LaunchException:
    """Resources of one run's job, in place of those of `Launch`."""

    nodes: Count | None = None
    processes_per_node: Count | None = None
    cpus_per_process: Count | None = None
    memory_gib: Count | None = None
    gpu_type: Text | None = None
    partition: Text | None = None
    account: Text | None = None
    qos: Text | None = None
    constraint: Text | None = None
    hours: Positive | None = None


@dataclass(frozen=True, kw_only=True)
class Launch:
    """Execution settings for training jobs.

    Attributes:
        backend: `slurm`: a SLURM job; `local`: processes of this machine; `auto`: SLURM if there is an `sbatch`.
        processes_per_node: Processes of a run on each node, one for each GPU.
        cpus_per_process: Processor cores of each process, and of every job that samples, extracts or measures.
        memory_gib: Memory of a node in GiB; by default the site's default.
        device: `cuda`: each process of a job needs a GPU of its own; `cpu`: none is used.
        gpus: How GPUs are requested: `gres` (`--gres=gpu:8`), `gpus` (`--gpus-per-node=8`), or `none`.
        gpu_type: Such as a100.
        constraint: Node features that SLURM has to select.
        hours: Time limit; a job that reaches it is requeued and resumes.
        signal_seconds: Seconds before the time limit at which the job is signalled, to finish a step and write a state.
        state_seconds: Seconds between two states: the most that a failing node costs.
        requeues: Requeues of a job by itself; 0 where a site forbids them: a new job is submitted instead.
        resubmissions: New jobs after a requeue limit or a lost job, without progress in between.
        poll_seconds: Seconds between two queries of the job's state.
        grace_seconds: Seconds that SLURM may take to requeue a job after a node failure or preemption.
        on_interrupt: What Ctrl-C does: `cancel` the job or `detach` from it; other signals never cancel it.
        on_change: What happens to the active job of a run whose config has changed: `leave` or `cancel`.
        setup: Shell lines before the processes start, such as `module load cuda`.
        python: Command that starts Python in the job; by default the interpreter of Snakemake.
        sbatch: Further options of sbatch.
        runs: Exceptions, by run or by family of runs.
    """

    backend: Literal["auto", "slurm", "local"] = "auto"
    nodes: Count = 1
    processes_per_node: Count = 1
    cpus_per_process: Count = 1
    memory_gib: Count | None = None
    device: Literal["cuda", "cpu"] = "cuda"
    gpus: Literal["gres", "gpus", "none"] = "gres"
    gpu_type: Text | None = None
    partition: Text | None = None
    account: Text | None = None
    qos: Text | None = None
    constraint: Text | None = None
    hours: Positive = 24.0
    signal_seconds: Count = 300
    state_seconds: Positive = 300.0
    requeues: Natural = 100
    resubmissions: Natural = 3
    poll_seconds: Positive = 30.0
    grace_seconds: Positive = 180.0
    on_interrupt: Literal["cancel", "detach"] = "cancel"
    on_change: Literal["leave", "cancel"] = "leave"
    setup: tuple[Text, ...] = ()
    python: Text | None = None
    sbatch: Options = field(default_factory=empty)
    runs: Annotated[Mapping[RunName, LaunchException], Apply(frozen)] = field(default_factory=empty)

    def of(self, run: str) -> Launch:
        """Return the settings of one run, its exception or that of its family applied."""
        exception = self.runs.get(run, self.runs.get(run.partition(".")[0]))
        given = {} if exception is None else vars(exception)
        return replace(self, **{key: value for key, value in given.items() if value is not None}, runs=empty())

    @property
    def processes(self) -> int:
        """Processes of a run, on all nodes."""
        return self.nodes * self.processes_per_node


@dataclass(frozen=True, kw_only=True)
class Storage:
    """Which intermediate files of the evaluation stay on disk; grids of a few images always do.

    Attributes:
        images: `none`: features are extracted while a block of images is generated, in one job.
        features: `none`: features of generated images are deleted when all numbers from them are measured.
    """

    images: Literal["keep", "none"] = "keep"
    features: Literal["keep", "none"] = "keep"


@dataclass(frozen=True, kw_only=True)
class Rerun:
    """What a change of the code reruns.

    Attributes:
        training_on_code_change: Train again when the training code changes; otherwise the table marks the run.
    """

    training_on_code_change: bool = False
