"""The SLURM that tests run against: asked, stopped in parts, and put together again."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

SCRIPTS = Path(__file__).parent / "cluster"
NODES = ("n1", "n2")

# Exit code of up.sh on a machine that lacks what a cluster needs.
_LACKING = 77
_JOB_FIELDS = ("JobIDRaw", "JobName", "Comment", "State", "ExitCode", "Submit", "Start", "End", "NodeList")
_TRES_FIELDS = ("ReqTRES", "AllocTRES")


class CannotHaveSlurm(Exception):
    """This machine lacks root or packages."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One start of a job, from accounting.

    Attributes:
        state: The first word of sacct's: CANCELLED, without by whom.
        requested: Requested resources, such as {"cpu": "8", "gres/gpu:a100": "8"}.
        allocated: What it got; empty while it has nothing.
    """

    id: int
    name: str
    comment: str
    state: str
    exit_code: str
    submitted: str
    started: str
    ended: str
    nodes: str
    requested: Mapping[str, str]
    allocated: Mapping[str, str]

    @classmethod
    def parse(cls, line: str) -> Job:
        """Read a line of `sacct --parsable2`."""
        *words, requested, allocated = line.split("|")
        number, name, comment, state, exit_code, submitted, started, ended, nodes = words
        return cls(
            id=int(number),
            name=name,
            comment=comment,
            state=state.split()[0],
            exit_code=exit_code,
            submitted=submitted,
            started=started,
            ended=ended,
            nodes=nodes,
            requested=_resources(requested),
            allocated=_resources(allocated),
        )


def _resources(text: str) -> dict[str, str]:
    return dict(part.split("=", 1) for part in text.split(",") if part)


@dataclass(frozen=True, kw_only=True)
class Slurm:
    """A cluster of this machine.

    Attributes:
        root: Its folder.
        environment: With it, commands find this cluster: SLURM_CONF, and SLURM's commands first in PATH.
    """

    root: Path
    environment: Mapping[str, str]

    def command(self, *words: str) -> str:
        """Run one of SLURM's commands; return what it prints."""
        done = subprocess.run(words, env=self.environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{' '.join(words)}: {done.stdout}{done.stderr}"
        return done.stdout

    def sacct(self, *options: str) -> str:
        """Ask accounting about everything that this cluster ever ran."""
        return self.command("sacct", "--starttime", "2000-01-01", "--noheader", "--parsable2", *options)

    def jobs(self, name: str | None = None) -> list[Job]:
        """Return every start of every job, or of those of that name, in the order of their submission."""
        named = [] if name is None else ["--name", name]
        fields = ",".join((*_JOB_FIELDS, *_TRES_FIELDS))
        lines = self.sacct("--duplicates", "--allocations", "--format", fields, *named).splitlines()
        return sorted(map(Job.parse, lines), key=lambda job: (job.id, job.submitted))

    def submit(self, script: str, *options: str) -> int:
        """Submit lines of shell, whose output goes nowhere unless the options redirect it; return the job's id."""
        return int(self.command("sbatch", "--parsable", "--output", "/dev/null", *options, "--wrap", script))

    def state(self, job: int) -> str:
        """Return the state of a job by squeue: PENDING, RUNNING, COMPLETED, ..., or nothing once it is forgotten."""
        return self.command("squeue", "--noheader", "--states", "all", "--jobs", str(job), "--format", "%T").strip()

    def restarts(self, job: int) -> int:
        """Return the controller's number of requeues of a job."""
        return int(self._record(job, "Restarts"))

    def nodes_of(self, job: int) -> str:
        """Return the nodes of a job's newest start by the controller."""
        return self._record(job, "NodeList")

    def _record(self, job: int, key: str) -> str:
        record = self.command("scontrol", "--oneliner", "show", "job", str(job))
        found = re.search(rf" {key}=(\S+)", record)
        assert found, record
        return found[1]

    def node_state(self, node: str) -> str:
        """Return the state of a node by sinfo: idle, mixed, allocated, down, ...; with a * where it does not answer."""
        return self.command("sinfo", "--noheader", "--nodes", node, "--partition", "main", "--format", "%T").strip()

    def cancel_all(self) -> None:
        """Cancel every job, and wait until all are gone."""
        left = self.command("squeue", "--noheader", "--format", "%A").split()
        if left:
            subprocess.run(["scancel", *left], env=self.environment, capture_output=True, timeout=60)
        until(lambda: not self.command("squeue", "--noheader"), seconds=60, what="all jobs are gone")

    def stop_accounting(self) -> None:
        """Stop slurmdbd: sacct fails, jobs continue."""
        pid = self._recorded("slurmdbd")
        os.kill(pid, signal.SIGTERM)
        until(lambda: not _is_alive(pid), seconds=20, what="slurmdbd has ended")

    def start_accounting(self) -> None:
        """Start slurmdbd again; what happened meanwhile reaches it within about ten seconds."""
        self._start("slurmdbd", log="slurmdbd.out")
        until(self._accounts, seconds=30, what="slurmdbd answers")

    def _accounts(self) -> bool:
        asked = ["sacctmgr", "-n", "show", "cluster"]
        return subprocess.run(asked, env=self.environment, capture_output=True, timeout=60).returncode == 0

    def stop_controller(self) -> None:
        """Stop slurmctld: every command fails, jobs continue."""
        pid = self._recorded("slurmctld")
        os.kill(pid, signal.SIGTERM)
        until(lambda: not _is_alive(pid), seconds=20, what="slurmctld has ended")

    def start_controller(self) -> None:
        """Start slurmctld again, with its saved state."""
        self._start("slurmctld", "-f", self.environment["SLURM_CONF"], log="slurmctld.out")
        until(self._answers, seconds=30, what="slurmctld answers")

    def _answers(self) -> bool:
        return subprocess.run(["squeue"], env=self.environment, capture_output=True, timeout=60).returncode == 0

    @contextmanager
    def forgetful(self, *, seconds: int) -> Iterator[None]:
        """Let the controller forget a job `seconds` after its end, or up to a minute later."""
        configuration = Path(self.environment["SLURM_CONF"])
        before = configuration.read_text()
        configuration.write_text(re.sub(r"(?m)^MinJobAge=.*$", f"MinJobAge={seconds}", before))
        self.command("scontrol", "reconfigure")
        try:
            yield
        finally:
            configuration.write_text(before)
            self.command("scontrol", "reconfigure")

    def kill_node(self, node: str) -> None:
        """Let a node die as a machine does: its slurmd, steps and tasks, at one moment and without a word."""
        # Stop all first, so that none reports the end of another or starts a process.
        stopped: list[int] = []
        while more := [pid for pid in self._processes_of(node) if pid not in stopped]:
            stopped += more
            _signal(stopped, signal.SIGSTOP)
        _signal(stopped, signal.SIGKILL)
        until(lambda: not any(map(_is_alive, stopped)), seconds=10, what=f"the processes of {node} have ended")

    def revive_node(self, node: str) -> None:
        """Start a node's slurmd again, and wait until jobs may run there."""
        configuration = ["-f", self.environment["SLURM_CONF"]]
        self._start("slurmd", *configuration, "-N", node, log=f"slurmd.{node}.out")
        until(lambda: self.node_state(node) in ("idle", "mixed", "allocated"), seconds=60, what=f"{node} is back")

    @contextmanager
    def preempting_without_signal(self) -> Iterator[None]:
        """Preempt as sites do that do not send a job its own signal: with TERM alone."""
        path = Path(self.environment["SLURM_CONF"])
        text = path.read_text()
        silent = text.replace("\nSlurmctldParameters=preempt_send_user_signal\n", "\n")
        assert silent != text
        try:
            path.write_text(silent)
            self.command("scontrol", "reconfigure")
            yield
        finally:
            path.write_text(text)
            self.command("scontrol", "reconfigure")

    def without(self, *commands: str) -> dict[str, str]:
        """Return the environment of a machine that lacks commands, such as sacct."""
        twins = self.root / "without" / "-".join(sorted(commands))
        folders = [Path(folder) for folder in self.environment["PATH"].split(os.pathsep)]
        path = [self._lacking(folder, commands, twin=twins / str(place)) for place, folder in enumerate(folders)]
        return {**self.environment, "PATH": os.pathsep.join(map(str, path))}

    @staticmethod
    def _lacking(folder: Path, commands: Iterable[str], *, twin: Path) -> Path:
        """Return a folder of PATH, or links to what else is in it where it holds one of the commands."""
        if not any((folder / command).exists() for command in commands):
            return folder
        shutil.rmtree(twin, ignore_errors=True)
        twin.mkdir(parents=True)
        for program in folder.iterdir():
            if program.name not in commands:
                (twin / program.name).symlink_to(program)
        return twin

    def restore(self) -> None:
        """Put together again what a test left: no jobs, all nodes, accounting, the controller."""
        if not self._accounts():
            self.start_accounting()
        if not self._answers():
            self.start_controller()
        for node in NODES:
            if not _is_alive(self._recorded(f"slurmd.{node}")):
                self.revive_node(node)
        self.cancel_all()

    def _processes_of(self, node: str) -> list[int]:
        """Return a node's slurmd and step daemons, which hold its log open, its tasks, and all that they started."""
        log, mark = self.root / "log" / f"slurmd.{node}.log", f"SLURMD_NODENAME={node}".encode()
        configuration = f"SLURM_CONF={self.environment['SLURM_CONF']}".encode()
        every = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
        found = {pid for pid in every if _holds(pid, log) or {mark, configuration} <= _environment_of(pid)}
        parents = {pid: _parent_of(pid) for pid in every}
        while more := {pid for pid, parent in parents.items() if parent in found} - found:
            found |= more
        return sorted(found)

    def _recorded(self, daemon: str) -> int:
        return int((self.root / "run" / f"{daemon}.pid").read_text())

    def _start(self, program: str, *options: str, log: str) -> None:
        with (self.root / "log" / log).open("a") as output:
            streams = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": output}
            path = f"{self.environment['PATH']}{os.pathsep}/usr/sbin"
            environment = {**self.environment, "PATH": path}
            subprocess.run(["setsid", program, *options], env=environment, cwd=self.root, check=True, **streams)


@contextmanager
def running() -> Iterator[Slurm]:
    """Start a cluster, and stop it in any case.

    Raises:
        CannotHaveSlurm: This machine lacks root or packages.
    """
    root = Path(os.environ.get("SLURM_TEST_ROOT", "/var/tmp/onestep-slurm"))
    try:
        up = subprocess.run([SCRIPTS / "up.sh"], capture_output=True, text=True)
        if up.returncode == _LACKING:
            raise CannotHaveSlurm(up.stderr.strip())
        assert up.returncode == 0, up.stdout + up.stderr
        yield Slurm(root=root, environment=_environment(root))
    finally:
        subprocess.run([SCRIPTS / "down.sh"], capture_output=True, timeout=120)


def _environment(root: Path) -> dict[str, str]:
    """Return this process's environment for the cluster, without the variables of a surrounding job."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "SBATCH", "SRUN"))}
    path = [str(root / "bin"), str(Path(sys.executable).parent), kept["PATH"]]
    return {**kept, "PATH": os.pathsep.join(path), "SLURM_CONF": str(root / "etc" / "slurm.conf")}


def until(holds: Callable[[], bool], *, seconds: float, what: str) -> None:
    """Wait for something that a cluster does in its own time."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"not within {seconds:g} s: {what}"
        time.sleep(0.1)


def _signal(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _parent_of(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _environment_of(pid: int) -> set[bytes]:
    try:
        return set(Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"))
    except OSError:
        return set()


def _holds(pid: int, path: Path) -> bool:
    """Whether a process has a file open."""
    try:
        return any(os.readlink(each) == str(path) for each in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False
