"""What each rank of a training's SLURM job does: check what SLURM gave, join the others, train, leave in order."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn

from onestep.exits import Exit
from onestep.training.assignment import Assignment
from onestep.training.stopping import Stop

if TYPE_CHECKING:
    from submitit import JobEnvironment

_PORTS = range(20_000, 30_000)
# srun ends all ranks with the first that fails; the one whose log is read shall have said what is wrong.
_HEAD_START_SECONDS = 3.0


@dataclass(frozen=True, kw_only=True)
class TrainingTask:
    """A training as what submitit calls in every rank of a job; kept as a file, it names this class and holds no code.

    Attributes:
        assignment: What to train.
        nodes: Machines that the config asks for.
        processes_per_node: Processes on each, and GPUs, if that is what it trains on.
        cpus_per_process: Cores of each.
        device: What it trains on.
        folder: Where the run works, if its files are still those that it was submitted with; None does not ask.
        lock_seconds: How long to wait for an earlier life of the run that is about to leave.
    """

    assignment: Assignment
    nodes: int
    processes_per_node: int
    cpus_per_process: int
    device: Literal["cuda", "cpu"]
    folder: Path | None = None
    lock_seconds: float = 180.0

    def __call__(self) -> None:
        """Train; return when the run is finished.

        Raises:
            SystemExit: With `Exit.STOPPED` where a signal asked the training to stop and its state is saved, and with
                `Exit.WRONG_INPUT`, after one line that says why, where the job or a file does not fit.
        """
        import submitit

        job = submitit.JobEnvironment()
        # A life before a requeue may have left one, which would pass for the result of this one.
        job.paths.result_pickle.unlink(missing_ok=True)
        stop = _heed_signals()
        _speak(leads=job.global_rank == 0)
        try:
            finished = self._train(job, stop=stop)
        except ValueError as error:
            _refuse(error, leads=job.global_rank == 0)
        if not finished:
            sys.exit(Exit.STOPPED)

    def _train(self, job: JobEnvironment, *, stop: Stop) -> bool:
        os.environ |= self._environment(job)
        self._check_tasks(job)
        self._check_gpus(job)
        from onestep.fingerprint import Fingerprints
        from onestep.training.run import carry_out

        code = Fingerprints().of_training(self.assignment.document())
        folder = self.assignment.folder(code)
        self._check_folder(folder)

        def leave_mark() -> None:
            stopped_marker(folder, job_id=job.raw_job_id, restarts=_restarts()).touch()

        if job.global_rank == 0 and not _is_free(int(os.environ["MASTER_PORT"])):
            print(
                f"port {os.environ['MASTER_PORT']} of {job.hostname} is taken; the next life meets at another",
                flush=True,
            )
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
        )

    def _environment(self, job: JobEnvironment) -> dict[str, str]:
        """Return what torch's process group and the thread pools read; nothing that is inherited may stay."""
        blind = {"CUDA_VISIBLE_DEVICES": ""} if self.device == "cpu" else {}
        return blind | {
            "RANK": str(job.global_rank),
            "LOCAL_RANK": str(job.local_rank),
            "WORLD_SIZE": str(job.num_tasks),
            "MASTER_ADDR": job.hostnames[0],
            "MASTER_PORT": str(port_of(int(job.raw_job_id), restarts=_restarts())),
            "OMP_NUM_THREADS": str(self.cpus_per_process),
        }

    def _check_tasks(self, job: JobEnvironment) -> None:
        """Stop where SLURM has laid the job out in another way than the config says.

        Raises:
            ValueError: The number of nodes, of tasks, or of tasks on a node differs.
        """
        tasks, each = self.nodes * self.processes_per_node, self.processes_per_node
        if job.num_nodes != self.nodes:
            raise ValueError(
                f"launch.nodes: SLURM gave {job.num_nodes}, expected {self.nodes}; "
                "see that launch.sbatch and the site's SBATCH_ variables do not say otherwise"
            )
        if job.num_tasks != tasks:
            raise ValueError(
                f"launch.processes_per_node: SLURM started {job.num_tasks} tasks, expected {tasks} "
                f"(launch.nodes {self.nodes} x {each}); see that launch.sbatch asks for no number of tasks"
            )
        found = _tasks_per_node()
        if any(count != each for count in found):
            raise ValueError(
                f"launch.processes_per_node: SLURM started {', '.join(map(str, found))} tasks on the nodes, expected "
                f"{each} on each; see that launch.sbatch asks for no other distribution"
            )

    def _check_folder(self, folder: Path) -> None:
        """Stop where a file has changed since the job was submitted: that is another run, and has a job of its own.

        Raises:
            ValueError: The run would work in another folder.
        """
        if self.folder is not None and folder.resolve() != self.folder:
            raise ValueError(
                f"{self.folder}: what this run is trained from has changed since its job was submitted "
                f"({self.assignment.inputs.data}, or a network); launch it again, for what the files are now"
            )

    def _check_gpus(self, job: JobEnvironment) -> None:
        """Stop where this rank finds no GPU of its own.

        Raises:
            ValueError: It sees none, or so many that its own cannot be told.
        """
        if self.device == "cpu":
            return
        import torch

        found, each = torch.cuda.device_count(), self.processes_per_node
        # SLURM binds one to each task, or shows all of a node to all of its tasks.
        if found not in (1, each):
            raise ValueError(
                f"launch.processes_per_node: rank {job.global_rank} on {job.hostname} sees {found} GPUs, expected "
                f"{each}, or 1 that SLURM chose for it; see launch.gpus and launch.setup, or train with "
                "launch.device: cpu"
            )


def stopped_marker(folder: Path, *, job_id: str, restarts: int) -> Path:
    """Return the file that says: this life of this job was asked to stop, and has saved its state."""
    return folder / f"stopped.{job_id}.{restarts}"


def port_of(job_id: int, *, restarts: int) -> int:
    """Return where the ranks of a job meet: jobs that share a node differ, and so do the lives of one."""
    return _PORTS[(job_id + 3_119 * restarts) % len(_PORTS)]


def _is_free(port: int) -> bool:
    """Return whether nobody on this node listens at a port: another cluster's job, or what its users run there."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("", port))
        except OSError:
            return False
    return True


def _restarts() -> int:
    """Return how often SLURM has requeued this job."""
    return int(os.environ.get("SLURM_RESTART_COUNT") or 0)


def _tasks_per_node() -> list[int]:
    """Return how many tasks SLURM started on each node, which it writes as in `8(x2),4`; nothing where it says nothing.

    The step's number is that of srun, the job's that of sbatch.
    """
    names = ("SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE")
    written = next((os.environ[name] for name in names if os.environ.get(name)), "")
    groups = re.findall(r"(\d+)(?:\(x(\d+)\))?", written)
    return [int(tasks) for tasks, nodes in groups for _ in range(int(nodes or 1))]


def _heed_signals() -> Stop:
    """Put the training's signal handlers in the place of submitit's, which would requeue the job by themselves."""
    stop = Stop()
    stop.listen()
    signal.signal(signal.SIGCONT, signal.SIG_IGN)
    return stop


def _speak(*, leads: bool) -> None:
    """Let the leading rank report, and the others say what went wrong."""
    level = logging.INFO if leads else logging.ERROR
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)
    submitit = logging.getLogger("submitit")
    submitit.setLevel(level)
    # It has a handler of its own.
    submitit.propagate = False


def _refuse(error: ValueError, *, leads: bool) -> NoReturn:
    """Say in one line what the user can mend, and leave."""
    print(f"error: {error}", file=sys.stderr, flush=True)
    if not leads:
        time.sleep(_HEAD_START_SECONDS)
    sys.exit(Exit.WRONG_INPUT)
