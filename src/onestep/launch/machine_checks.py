"""What there is to know of this machine, and of the folder that runs keep their state in."""

from __future__ import annotations

import fcntl
import getpass
import importlib.util
import json
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from onestep.config.launch import Launch
from onestep.config.messages import ConfigError
from onestep.inputs import absent
from onestep.launch.commands import ask
from onestep.launch.finding import Finding, Mark, judged
from onestep.plan import Plan

_GIB = 2**30
_MOUNTS = Path("/proc/mounts")
# File systems that the nodes of a cluster share.
_SHARED = frozenset(
    (
        "afs",
        "beegfs",
        "beegfs_nodev",
        "ceph",
        "daos",
        "dvs",
        "fuse.ceph",
        "fuse.dfuse",
        "fuse.glusterfs",
        "fuse.juicefs",
        "fuse.quobyte",
        "gfs2",
        "glusterfs",
        "gpfs",
        "lustre",
        "nfs",
        "nfs4",
        "ocfs2",
        "orangefs",
        "panfs",
        "pvfs2",
        "wekafs",
    )
)
# Options under which a lock is not seen by other nodes.
_LOCKS_STAY_HERE = ("nolock", "local_lock=all", "local_lock=flock", "localflock")
_LITTLE_GIB, _NONE_GIB = 50, 1
_NAMED = 5
_COMMAND_SECONDS = 30.0
# Importing torch for the first time from a busy shared file system takes its time.
_PYTHON_SECONDS = 180.0
_PYTHON_QUESTION = """
import json, sys
found = {"version": list(sys.version_info[:2]), "absent": []}
for name in ("torch", "submitit"):
    try:
        __import__(name)
    except ImportError as error:
        found["absent"].append(f"{name} ({error})")
print("onestep-doctor", json.dumps(found))
"""


@dataclass(frozen=True, kw_only=True)
class Mount:
    """What a folder lies on.

    Attributes:
        kind: The kind of file system: `ext4`, `nfs4`, ...
        at: Where it is mounted.
        options: How.
    """

    kind: str
    at: Path
    options: tuple[str, ...]

    @property
    def is_shared(self) -> bool:
        """Whether it is of a kind that the nodes of a cluster share."""
        return self.kind in _SHARED


def mount_of(folder: Path, *, mounts: str) -> Mount:
    """Return what a folder lies on, by the text of /proc/mounts: the innermost of its mounts, and the last."""
    found = Mount(kind="unknown", at=Path("/"), options=())
    for line in mounts.splitlines():
        _, place, kind, options = line.split()[:4]
        at = Path(re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), place))
        if folder.is_relative_to(at) and len(at.parts) >= len(found.at.parts):
            found = Mount(kind=kind, at=at, options=tuple(options.split(",")))
    return found


def state_findings(state: Path, *, shared: bool) -> Iterator[Finding]:
    """Yield what there is to know of the folder that runs keep their state in.

    Args:
        state: The folder; it need not exist.
        shared: Whether other machines must see it.
    """
    folder = next(each for each in (state.absolute(), *state.absolute().parents) if each.is_dir()).resolve()
    mount = mount_of(folder, mounts=_MOUNTS.read_text() if _MOUNTS.exists() else "")
    yield judged(
        mount.is_shared or not shared,
        otherwise=Mark.NOTE,
        subject="state folder",
        found=f"{state.absolute()} on {mount.kind} at {mount.at}",
        remedy="that may be a disk of this machine alone: the compute nodes must see the same folder; work on a shared "
        "file system, or make state and results links to one",
    )
    yield _locks(folder, mount=mount)
    yield _space(folder)


def _locks(folder: Path, *, mount: Mount) -> Finding:
    alone = [option for option in _LOCKS_STAY_HERE if option in mount.options]
    refused = _flock_complaint(folder)
    return judged(
        not alone and refused is None,
        otherwise=Mark.BAD,
        subject="file locks",
        found=refused or (f"mounted with {', '.join(alone)}: other nodes do not see them" if alone else "work"),
        remedy="two launchers could write one run: keep state on a file system whose flock holds on every node",
    )


def _flock_complaint(folder: Path) -> str | None:
    """Return what is wrong with flock in a folder, None where it does its work."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".onestep-doctor-") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with open(file.name, "rb") as other:
                try:
                    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    return None
            return "flock lets two in"
    except OSError as error:
        return f"none in {folder} ({error.strerror or error})"


def _space(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free / _GIB
    return judged(
        free >= _LITTLE_GIB,
        otherwise=Mark.NOTE if free >= _NONE_GIB else Mark.BAD,
        subject="free space",
        found=f"{free:,.1f} GiB",
        remedy="a run of the paper's size keeps several GiB of states and snapshots",
    )


def quota_findings() -> Iterator[Finding]:
    """Yield what `quota` says, where a site has it; it ends with 1 where one is used up."""
    if shutil.which("quota") is None:
        return
    answer = ask("quota", "--human-readable", "--no-wrap", timeout_seconds=_COMMAND_SECONDS)
    if answer is None:
        return
    limits = [" ".join(line.split()) for line in answer.output.splitlines()[2:] if line.strip()]
    yield judged(
        answer.code == 0,
        otherwise=Mark.NOTE,
        subject="quota",
        found=f"{getpass.getuser()}: {', '.join(limits) or 'none told'}",
        remedy="one is used up, or quota failed: see `quota`",
    )


def container_finding() -> Finding:
    """Return which program for containers is here; none is needed where the environment is installed."""
    found = next((name for name in ("apptainer", "singularity") if shutil.which(name)), None)
    remedy = "only needed for `--software-deployment-method apptainer` and for a container in launch.python"
    return judged(found is not None, otherwise=Mark.NOTE, subject="containers", found=found or "none", remedy=remedy)


def python_finding(launch: Launch) -> Finding:
    """Ask the interpreter of the jobs for its version, and to import what they need.

    Args:
        launch: Whose `python` may be several words (`apptainer exec X python`).
    """
    command = shlex.split(launch.python or sys.executable)
    ours = sys.version_info[:2]
    answer = ask(*command, "-c", _PYTHON_QUESTION, timeout_seconds=_PYTHON_SECONDS)
    said = re.search(r"^onestep-doctor (.*)$", answer.output, re.MULTILINE) if answer else None
    # What the lines of launch.setup would load is not loaded here.
    bad = Mark.NOTE if launch.setup else Mark.BAD
    subject, place = "Python of the jobs", " ".join(command)
    if said is None:
        remedy = "correct launch.python, or leave it out"
        return Finding(mark=bad, subject=subject, found=f"{place} does not run", remedy=remedy)
    found = json.loads(said[1])
    theirs, missing = tuple(found["version"]), found["absent"]
    if theirs != ours:
        here = f"{place} is {theirs[0]}.{theirs[1]}, this one is {ours[0]}.{ours[1]}"
        remedy = "jobs are handed over as pickles: use one minor version for both"
        return Finding(mark=bad, subject=subject, found=here, remedy=remedy)
    return judged(
        not missing,
        otherwise=bad,
        subject=subject,
        found=f"{place}, {theirs[0]}.{theirs[1]}, {'without ' + ', '.join(missing) if missing else 'torch, submitit'}",
        remedy="install `onestep[cluster]` there",
    )


def driver_finding() -> Finding:
    """Return whether this interpreter can send the other rules to SLURM."""
    needed = ("snakemake", "snakemake_executor_plugin_slurm", "snakemake_executor_plugin_slurm_jobstep", "submitit")
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    there = f"without {', '.join(missing)}" if missing else "snakemake, its executor, submitit"
    return judged(
        not missing,
        otherwise=Mark.BAD,
        subject="Python of the workflow",
        found=f"{sys.executable}, {there}",
        remedy="pip install 'onestep[workflow,cluster]'",
    )


def gpu_finding(*, needed: bool) -> Finding:
    """Return which GPUs are visible here; `needed` says whether trainings run here."""
    answer = ask("nvidia-smi", "--list-gpus", timeout_seconds=_COMMAND_SECONDS)
    listed = answer.output.splitlines() if answer is not None and answer.code == 0 else []
    return judged(
        bool(listed) or not needed,
        otherwise=Mark.NOTE,
        subject="GPUs here",
        found=f"{len(listed)} ({listed[0].partition(' (UUID')[0]})" if listed else "none",
        remedy="trainings on this machine use its processor",
    )


def input_findings(config: Path) -> Iterator[Finding]:
    """Yield what is wrong with a config, else which of its inputs are not here; paths are relative to this folder."""
    try:
        plan = Plan.read(config)
    except ConfigError as error:
        for line in str(error).splitlines():
            yield Finding(mark=Mark.BAD, subject="config", found=line)
        return
    except ImportError as error:
        # The blocks of a config are checked against the classes that they name.
        remedy = "run `onestep doctor` in the environment of the jobs as well"
        yield Finding(mark=Mark.NOTE, subject="config", found=f"not looked at here: {error}", remedy=remedy)
        return
    needed = plan.inputs.needed
    missing = [name for name in needed if absent(plan.inputs.source(name), name=name) is not None]
    yield judged(
        not missing,
        otherwise=Mark.NOTE,
        subject="inputs",
        found=f"{len(needed) - len(missing)} of {len(needed)} here"
        + (f", not {', '.join(missing)}" if missing else ""),
        remedy="compute nodes need no network: run `onestep fetch` where there is one; `onestep fetch --offline` says "
        "what is missing and how to bring it",
    )
