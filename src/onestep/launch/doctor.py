"""Check whether a site is ready for trainings; report what to fix and which keys the Snakemake profile needs."""

from __future__ import annotations

import enum
import importlib.util
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from onestep.bench.estimate import fit_of_run, gpu_memory
from onestep.config.messages import ConfigError
from onestep.config.reading import read_experiment, read_launch
from onestep.config.sections import Launch
from onestep.inputs import absent
from onestep.launch.cluster import Cluster
from onestep.launch.resources import resources, words
from onestep.plan import Plan
from onestep.plan.cost import RATES
from onestep.plan.inputs import input_source, needed_inputs
from onestep.plan.measured import default_runs

# Programs and a harmless query of each; without one here it is `--version`. These two need the controller.
_PROGRAMS = ("sbatch", "squeue", "scontrol", "scancel", "srun")
_QUERIES = {"squeue": "--name=onestep-doctor", "scontrol": "ping"}
_DRIVER = ("snakemake", "snakemake_executor_plugin_slurm", "snakemake_executor_plugin_slurm_jobstep", "submitit")
# Snakemake's executor makes its first query 40 s after a submission; it needs records kept three times as long.
_FIRST_QUERY_SECONDS = 40
_SHARED_FILE_SYSTEM = re.compile(
    r"afs|beegfs\w*|ceph|daos|dvs|gfs2|glusterfs|gpfs|lustre|nfs4?|ocfs2|orangefs|panfs|pvfs2|wekafs"
    r"|fuse\.(ceph|dfuse|glusterfs|juicefs|quobyte)"
)
# Mount options under which other nodes do not see a lock.
_LOCAL_LOCKS = frozenset({"nolock", "local_lock=all", "local_lock=flock", "localflock"})
_LITTLE_GIB, _MINIMUM_GIB = 50, 1
# The first import of torch from a busy shared file system is slow.
_PYTHON_SECONDS = 180.0
_PYTHON_QUERY = """
import json, sys
absent = []
for name in ("torch", "submitit"):
    try:
        __import__(name)
    except ImportError as error:
        absent.append(f"{name} ({error})")
print("onestep-doctor", json.dumps([".".join(map(str, sys.version_info[:2])), absent]))
"""


class Mark(enum.Enum):
    """Severity of a finding."""

    OK = "ok"
    NOTE = "note"
    BAD = "bad"  # something will fail


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Result of one check: its severity, subject and result in one line, a fix, and keys for Snakemake's profile."""

    mark: Mark
    subject: str
    found: str
    fix: str = ""
    profile: Mapping[str, Any] = field(default_factory=dict)

    def line(self) -> str:
        """Return the finding in one line, with the fix unless it is OK."""
        fix = f". Fix: {self.fix}" if self.fix and self.mark is not Mark.OK else ""
        return f"{self.mark.value:4}  {self.subject}: {self.found}{fix}"


def _check(subject: str, found: str, *, ok: bool = True, otherwise: Mark = Mark.BAD, **further: Any) -> Finding:
    return Finding(mark=Mark.OK if ok else otherwise, subject=subject, found=found, **further)


def examine(config: Path | None, *, state: Path, cluster: Cluster, gpu_gib: float | None = None) -> Iterator[Finding]:
    """Yield the findings on a site, by default settings without a config; ConfigError if its section is wrong.

    `gpu_gib` is the memory of a GPU for which the runs are estimated; by default that of the config or of this machine.
    """
    launch = Launch() if config is None else read_launch(config)
    slurm = any(map(shutil.which, _PROGRAMS))
    if remote := slurm and launch.backend != "local":
        yield _check("backend", "slurm: trainings and other rules become SLURM jobs", profile={"executor": "slurm"})
        yield from slurm_findings(cluster, launch)
        missing = [name for name in _DRIVER if importlib.util.find_spec(name) is None]
        found, fix = f"missing packages: {', '.join(missing) or 'none'}", "pip install 'onestep[workflow,cluster]'"
        yield _check("Python of the workflow", f"{sys.executable}, {found}", ok=not missing, fix=fix)
    elif launch.backend == "slurm":
        fix = "load the site's SLURM module, or set `launch: {backend: local}`"
        yield _check("backend", "got no SLURM in PATH, expected it by launch.backend", ok=False, fix=fix)
    else:
        why = "launch.backend" if slurm else "no SLURM in PATH"
        yield _check("backend", f"local ({why}): everything runs on this machine")
    yield from state_findings(state, shared=remote)
    yield python_finding(launch if remote else Launch())
    if config is not None:
        yield from input_findings(config)
        yield from memory_findings(config, state=state, gpu_gib=gpu_gib)


def memory_findings(config: Path, *, state: Path, gpu_gib: float | None) -> Iterator[Finding]:
    """Yield whether the runs of a config fit their GPUs; nothing where no GPU is known, or the config is wrong.

    Runs of studies on request alone are left out: they are checked before their jobs.
    """
    try:
        experiment = read_experiment(config)
    except (ConfigError, ImportError):
        return  # reported with the inputs
    here = gpu_memory() if gpu_gib is None else None
    for name in default_runs(experiment):
        run = experiment.runs[name]
        site = experiment.launch.of(name)
        # On CPUs only where a GPU is named.
        gib = gpu_gib or (site.gpu_memory_gib if site.device == "cuda" else None)
        memory = round(gib * 2**30) if gib else here if site.device == "cuda" else None
        if memory is None:
            continue
        subject, processes = f"memory of {name}", site.processes
        if run.batch % processes:
            continue  # refused by the config's own checks
        folder = state / ".estimates"
        fit = fit_of_run(experiment, name, processes=processes, memory=memory, folder=folder)
        if fit is None:
            fix = "with torch and the published teacher's name it is estimated; else try some steps"
            yield _check(subject, "not known", ok=False, otherwise=Mark.NOTE, fix=fix)
            continue
        severity = Mark.BAD if fit.is_hopeless else Mark.NOTE
        hours = run.images * fit.work / RATES[False] / processes / 3600
        length = (
            f"about {hours:,.1f} h on {processes} GPUs at 30 % of an A100 in float32, launch.hours is {site.hours:g}"
        )
        yield _check(subject, f"{fit.line()}; {length}", ok=not fit.is_tight, otherwise=severity, fix=fit.fix(name))


def profile_lines(findings: Iterable[Finding]) -> Iterator[str]:
    """Yield the lines for the Snakemake profile; none if it needs none."""
    profile = {key: value for finding in findings for key, value in finding.profile.items()}
    if profile:
        yield from ("", "Put into your profile:", *yaml.safe_dump(profile, sort_keys=False).splitlines())


def _succeeded(answer: subprocess.CompletedProcess[str] | None) -> bool:
    return answer is not None and answer.returncode == 0


def slurm_findings(cluster: Cluster, launch: Launch) -> Iterator[Finding]:
    """Yield the findings on a SLURM and on the jobs that `launch` requests of it."""
    cluster = replace(cluster, name=launch.cluster)
    for program in _PROGRAMS:
        answer = cluster.ask(program, _QUERIES.get(program, "--version"))
        text = "" if answer is None else answer.stdout + answer.stderr
        # `scontrol ping` lists all controllers and exits with 0 even if all are down.
        ok = _succeeded(answer) and (program != "scontrol" or "is UP" in text)
        failed = "no answer" if shutil.which(program) else "not in PATH"
        found = "answers" if ok else " / ".join([failed, *text.split("\n")]).strip(" /")
        fix = "load the site's SLURM module; check SLURM_CONF and the controller (`scontrol ping`)"
        yield _check(program, found, ok=ok, fix=fix)
    if "SLURM_CONF" in os.environ:
        ok = _succeeded(cluster.ask("scontrol", "ping", unset=["SLURM_CONF"]))
        fix = "Snakemake removes it from jobs, whose srun then fails: link /etc/slurm/slurm.conf to it on every node"
        yield _check("SLURM_CONF", os.environ["SLURM_CONF"], ok=ok, fix=fix)
    lines = cluster.lines("scontrol", "show", "config") or ()
    settings = {name.strip(): value.strip() for name, _, value in (line.partition("=") for line in lines) if value}
    if not settings:
        found = "got no settings; further checks of SLURM are skipped"
        yield _check("controller", found, ok=False, fix="see `scontrol show config`")
        return
    yield _accounting(cluster, settings)
    yield from _requests(cluster, launch)


def _accounting(cluster: Cluster, settings: Mapping[str, str]) -> Finding:
    """Check accounting; without sacct, Snakemake must query squeue or it waits forever for its jobs."""
    storage = settings.get("AccountingStorageType", "")
    off = storage in ("", "(null)", "accounting_storage/none")
    answer = cluster.ask("sacct", "--noheader", "--allocations", "--jobs=1", "--format=State")
    if not off and _succeeded(answer):
        return _check("accounting", f"{storage}, sacct answers")
    profile: dict[str, Any] = {"slurm-status-command": "squeue"}
    kept = re.match(r"\d+", settings.get("MinJobAge", ""))
    if kept is not None and int(kept[0]) < 3 * _FIRST_QUERY_SECONDS:
        profile["slurm-init-seconds-before-status-checks"] = max(1, int(kept[0]) // 3)
    if off:
        profile["slurm-no-account"] = True
    found = f"{storage or 'off'}, sacct: {' '.join(answer.stderr.split()) if answer else 'no answer'}"
    fix = "let Snakemake query squeue (see the profile); GPU hours of trainings stay unknown"
    return _check("accounting", found, ok=False, otherwise=Mark.NOTE, fix=fix, profile=profile)


def _requests(cluster: Cluster, launch: Launch) -> Iterator[Finding]:
    """Compare the jobs of the config with the partitions (sinfo), and try them with `sbatch --test-only`."""
    lines = cluster.lines("sinfo", "--noheader", "--format=%P|%l|%G|%F") or ()
    rows = [line.strip().split("|") for line in lines if line.count("|") == 3]
    wanted = launch.partition and launch.partition.split(",")
    own = [row for row in rows if (row[0].rstrip("*") in wanted if wanted else row[0].endswith("*"))]
    defaults = {f"slurm_{key}": value for key in ("partition", "account") if (value := getattr(launch, key))}
    subject, listed = "partitions (limit, GPUs, nodes allocated/idle/other/total)", "; ".join(map(" ".join, rows))
    yield _check(subject, listed or "none", profile={"default-resources": defaults} if defaults else {})
    longest = max((_hours(limit) for _, limit, _, _ in own), default=math.inf)
    if launch.hours > longest:
        fix = f"set launch.hours to at most {longest:g}; a training is requeued and resumed at its time limit"
        yield _check("time limit", f"got launch.hours {launch.hours:g}", ok=False, fix=fix)
    # Without a node that is up, SLURM refuses every job.
    up = not own or any(int(count) for row in own for count in row[3].split("/")[:2])
    for key, site in {"launch": launch, **{f"launch.runs.{run}": launch.of(run) for run in launch.runs}}.items():
        options = words({**resources(site), **site.sbatch})
        refused = _refusal(cluster, options)
        fix = f"correct {key} ({' '.join(options)})" if up else "no node is up; try again later"
        if refused and site.gpus != "none" and up:
            other = replace(site, gpus="gpus" if site.gpus == "gres" else "gres")
            fix = (
                fix
                if _refusal(cluster, words({**resources(other), **other.sbatch}))
                else f"set `launch: {{gpus: {other.gpus}}}`"
            )
        found = f"sbatch refuses it: {refused}" if refused else "sbatch accepts it"
        yield _check(f"job of {key}", found, ok=not refused, otherwise=Mark.BAD if up else Mark.NOTE, fix=fix)


def _refusal(cluster: Cluster, options: list[str]) -> str:
    """Return sbatch's reason against a job, or ""."""
    answer = cluster.ask("sbatch", "--test-only", *options, "--wrap=true")
    if answer is None or answer.returncode == 0:
        return "" if answer else "no answer"
    return " / ".join(answer.stderr.strip().split("\n")) or f"exit code {answer.returncode}"


def _hours(limit: str) -> float:
    """Parse SLURM's [days-][hours:]minutes:seconds into hours; inf for `infinite`."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", limit)
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups()) if match else (math.inf, 0, 0, 0)
    return 24 * days + hours + minutes / 60 + seconds / 3600


def state_findings(state: Path, *, shared: bool, mounts: Path = Path("/proc/mounts")) -> Iterator[Finding]:
    """Yield the findings on the root of the work folders, which compute nodes must see if it is to be `shared`."""
    folder = next(each for each in (state.absolute(), *state.absolute().parents) if each.is_dir()).resolve()
    kind, at, options = mount_of(folder, mounts=mounts.read_text(encoding="utf-8") if mounts.exists() else "")
    ok, fix = not shared or bool(_SHARED_FILE_SYSTEM.fullmatch(kind)), "use a file system that the compute nodes share"
    yield _check("state folder", f"{state.absolute()} on {kind} at {at}", ok=ok, otherwise=Mark.NOTE, fix=fix)
    local = ", ".join(sorted(_LOCAL_LOCKS & options))
    fix = "use a file system whose flock holds on all nodes; else two launchers can write to one run"
    yield _check("file locks", f"mounted with {local}" if local else "not local", ok=not local, fix=fix)
    free = shutil.disk_usage(folder).free / 2**30
    otherwise = Mark.NOTE if free >= _MINIMUM_GIB else Mark.BAD
    fix = "make room: a run of the paper's size keeps several GiB of states and snapshots"
    yield _check("free space", f"{free:,.1f} GiB", ok=free >= _LITTLE_GIB, otherwise=otherwise, fix=fix)


def mount_of(folder: Path, *, mounts: str) -> tuple[str, Path, frozenset[str]]:
    """Return file system, mount point and options of a folder: of the innermost mount, and the last one there."""
    found: tuple[str, Path, frozenset[str]] = ("unknown", Path("/"), frozenset())
    for line in mounts.splitlines():
        _, place, kind, options = line.split()[:4]
        at = Path(re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), place))
        if folder.is_relative_to(at) and len(at.parts) >= len(found[1].parts):
            found = (kind, at, frozenset(options.split(",")))
    return found


def python_finding(launch: Launch) -> Finding:
    """Check version and packages of the jobs' interpreter (`launch.python`, such as `apptainer exec X python`)."""
    command, own = shlex.split(launch.python or sys.executable), f"{sys.version_info[0]}.{sys.version_info[1]}"
    answer = Cluster(timeout_seconds=_PYTHON_SECONDS).ask(*command, "-c", _PYTHON_QUERY)
    printed = re.search(r"^onestep-doctor (.*)$", answer.stdout, re.MULTILINE) if answer else None
    ok, found, fix = False, f"{' '.join(command)} does not run", "correct launch.python, or remove it"
    if printed is not None:
        version, missing = json.loads(printed[1])
        ok, packages = version == own and not missing, f"missing packages: {', '.join(missing) or 'none'}"
        found = f"{' '.join(command)} is {version}, the workflow's is {own}, {packages}"
        fix = "use the same minor version, since jobs are handed over as pickles, with `onestep[cluster]` installed"
    # The lines of launch.setup, which may load missing parts, do not run here.
    return _check("Python of the jobs", found, ok=ok, otherwise=Mark.NOTE if launch.setup else Mark.BAD, fix=fix)


def input_findings(config: Path) -> Iterator[Finding]:
    """Yield the errors of a config, else which of its inputs are missing below the working directory."""
    try:
        plan = Plan.read(config)
    except ConfigError as error:
        yield from (_check("config", line, ok=False) for line in str(error).splitlines())
        return
    except ImportError as error:
        # The blocks of a config are checked against the classes that they name.
        fix = "run `onestep doctor` in the environment of the jobs as well"
        yield _check("config", f"not checked here: {error}", ok=False, otherwise=Mark.NOTE, fix=fix)
        return
    needed = needed_inputs(plan)
    missing = [name for name in needed if absent(input_source(plan, name), name=name) is not None]
    found = f"{len(needed) - len(missing)} of {len(needed)} here; missing: {', '.join(missing) or 'none'}"
    fix = "run `onestep fetch` where there is a network; `onestep fetch --offline` lists the missing inputs"
    yield _check("inputs", found, ok=not missing, otherwise=Mark.NOTE, fix=fix)
