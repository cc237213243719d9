"""One rank of a training's SLURM job: check the allocation, join the other ranks, train, exit with a code."""

from __future__ import annotations

import functools
import logging
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from onestep.exits import Exit
from onestep.launch.local import without_ranks
from onestep.training.assignment import Assignment
from onestep.training.stopping import Stop

if TYPE_CHECKING:
    from submitit import JobEnvironment

_PORTS = range(20_000, 30_000)
# srun ends all ranks with the first failure; this delay lets rank 0, whose log is shown, report its error first.
_HEAD_START_SECONDS = 3.0


@dataclass(frozen=True, kw_only=True)
class TrainingTask:
    """Training as called by submitit in every rank. Its pickle refers to this class and contains no code."""

    assignment: Assignment
    nodes: int
    processes_per_node: int  # and GPUs, on `cuda`
    cpus_per_process: int
    device: Literal["cuda", "cpu"]
    folder: Path | None = None  # expected work folder; None skips the check that the files are those of the submission
    lock_seconds: float = 180.0  # to wait for the lock of an ending earlier start of the job
    watch: Mapping[str, Any] = field(default_factory=dict)  # of `onestep.plan.watch.order`
    target: Path | None = None  # folder of the published run, in which samples and curves are shown meanwhile

    def __call__(self) -> None:
        """Train to the end of the run; else exit with `Exit.STOPPED`, the state saved, or `Exit.WRONG_INPUT`."""
        import submitit

        job = submitit.JobEnvironment()
        # The result of an earlier start of the job would count as the result of this one.
        job.paths.result_pickle.unlink(missing_ok=True)
        # In place of submitit's handlers, which requeue the job.
        stop = Stop()
        stop.listen()
        signal.signal(signal.SIGCONT, signal.SIG_IGN)
        level = logging.INFO if job.global_rank == 0 else logging.ERROR
        logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)
        logging.getLogger("submitit").setLevel(level)
        # It has its own handler.
        logging.getLogger("submitit").propagate = False
        try:
            finished = self._train(job, stop=stop)
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            if job.global_rank != 0:
                time.sleep(_HEAD_START_SECONDS)
            sys.exit(Exit.WRONG_INPUT)
        if not finished:
            sys.exit(Exit.STOPPED)

    def _train(self, job: JobEnvironment, *, stop: Stop) -> bool:
        # Variables of torch's process group and of thread pools; they replace inherited ones.
        for variable in os.environ.keys() - without_ranks(os.environ).keys():
            del os.environ[variable]
        os.environ |= {
            "RANK": str(job.global_rank),
            "LOCAL_RANK": str(job.local_rank),
            "WORLD_SIZE": str(job.num_tasks),
            # One node needs no name that its own network resolves.
            "MASTER_ADDR": "127.0.0.1" if job.num_nodes == 1 else job.hostnames[0],
            "MASTER_PORT": str(port_of(int(job.raw_job_id), restarts=_restarts())),
            "OMP_NUM_THREADS": str(self.cpus_per_process),
            **({"CUDA_VISIBLE_DEVICES": ""} if self.device == "cpu" else {}),
        }
        self._check_allocation(job)
        from onestep.fingerprint import Fingerprints
        from onestep.training.run import carry_out
        from onestep.watching import Watcher

        code = Fingerprints().of_training(self.assignment.document())
        folder = self.assignment.folder(code)
        if self.folder is not None and folder.resolve() != self.folder:
            found = f"got changed inputs ({self.assignment.inputs.data}, or a network)"
            raise ValueError(f"{self.folder}: {found}, expected those of the submission. Fix: launch the run again")

        def leave_mark() -> None:
            (folder / f"stopped.{job.raw_job_id}.{_restarts()}").touch()

        if job.global_rank == 0:
            port = os.environ["MASTER_PORT"]
            try:
                socket.create_server(("", int(port))).close()
            except OSError:
                print(f"port {port} of {job.hostname} is in use; the next start of the job uses another", flush=True)
                leave_mark()
                return False
        return carry_out(
            self.assignment,
            folder=folder,
            code=code,
            output=None,
            stop=stop.asked,
            lock_seconds=self.lock_seconds,
            when_stopped=leave_mark,
            watch=functools.partial(Watcher, order=self.watch, target=self.target, stop=stop.asked),
        )

    def _check_allocation(self, job: JobEnvironment) -> None:
        """Raise ValueError unless the allocation has the config's nodes, tasks, tasks per node, and GPUs."""
        each, tasks = self.processes_per_node, _tasks_per_node()
        fix = "Fix: neither launch.sbatch nor SBATCH_ variables may set the number of nodes or tasks"
        if job.num_nodes != self.nodes:
            raise ValueError(f"launch.nodes: got {job.num_nodes} from SLURM, expected {self.nodes}. {fix}")
        if job.num_tasks != self.nodes * each:
            expected = f"{self.nodes * each} (launch.nodes {self.nodes} x {each})"
            raise ValueError(f"launch.processes_per_node: got {job.num_tasks} tasks, expected {expected}. {fix}")
        if any(count != each for count in tasks):
            counts = ", ".join(map(str, tasks))
            raise ValueError(f"launch.processes_per_node: got {counts} tasks per node, expected {each}. {fix}")
        if self.device == "cpu":
            return
        import torch

        gpus = torch.cuda.device_count()
        # SLURM binds one GPU to each task, or makes all GPUs of a node visible to all its tasks.
        if gpus not in (1, each):
            found = f"got {gpus} GPUs in rank {job.global_rank} on {job.hostname}, expected {each}, or 1 bound by SLURM"
            fix = "launch.gpus, launch.setup, or launch.device: cpu"
            raise ValueError(f"launch.processes_per_node: {found}. Fix: {fix}")


def port_of(job_id: int, *, restarts: int) -> int:
    """Return the port of a job's process group; it differs between jobs of a node and between restarts."""
    return _PORTS[(job_id + 3_119 * restarts) % len(_PORTS)]


def _restarts() -> int:
    return int(os.environ.get("SLURM_RESTART_COUNT") or 0)


def _tasks_per_node() -> list[int]:
    """Return the number of tasks on each node, which SLURM writes as `8(x2),4`; empty if unknown."""
    # The step's variable comes from srun, the job's from sbatch.
    written = os.environ.get("SLURM_STEP_TASKS_PER_NODE") or os.environ.get("SLURM_TASKS_PER_NODE") or ""
    groups = re.findall(r"(\d+)(?:\(x(\d+)\))?", written)
    return [int(tasks) for tasks, nodes in groups for _ in range(int(nodes or 1))]
