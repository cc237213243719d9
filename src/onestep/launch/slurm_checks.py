"""What there is to know of a SLURM before trainings are sent to it."""

from __future__ import annotations

import getpass
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from onestep.config.launch import Launch
from onestep.launch.cluster import Cluster
from onestep.launch.commands import Answer
from onestep.launch.finding import Finding, Mark, judged
from onestep.launch.resources import place, resources, words

# A harmless question for each program: to answer takes the configuration, and for two of them the controller.
_QUESTIONS = {
    "sbatch": ("--version",),
    "squeue": ("--noheader", "--states=RUNNING", "--name=onestep-doctor"),
    "scontrol": ("ping",),
    "scancel": ("--version",),
    "srun": ("--version",),
}
# States of nodes that take no jobs; a star behind a state is a node that does not answer.
_NOT_UP = ("down", "drain", "error", "fail", "future", "unknown")
# Snakemake's executor first asks 40 s after a submission, and trusts squeue if jobs are kept three times as long.
_FIRST_STATUS_SECONDS = 40
_SHORT_KILL_WAIT_SECONDS = 30
_SHORT_JOB_AGE_SECONDS = 120


def is_here() -> bool:
    """Whether any of SLURM's programs is in PATH."""
    return any(shutil.which(program) for program in _QUESTIONS)


@dataclass(frozen=True, kw_only=True)
class Partition:
    """A partition, as `sinfo` shows it.

    Attributes:
        default: Whether jobs go there that name none.
        hours: Longest time of a job, infinite where there is no limit.
        nodes: How many nodes it has.
        up: How many of them can take jobs, now or when what runs there ends.
        gpus: GPUs of a node by type; the empty type where the site names none.
    """

    name: str
    default: bool
    hours: float
    nodes: int
    up: int
    gpus: Mapping[str, int]

    def described(self) -> str:
        """Return the partition in a few words."""
        limit = "without time limit" if math.isinf(self.hours) else f"up to {self.hours:g} h"
        return f"{self.name}{' (default)' if self.default else ''}, {self.up} of {self.nodes} nodes up, {limit}"


@dataclass(frozen=True, kw_only=True)
class Site:
    """A SLURM, and what the config wants of it.

    Attributes:
        cluster: Its commands.
        launch: What the config says in its section of that name.
        settings: `scontrol show config`; empty where the controller is silent.
        partitions: By name.
    """

    cluster: Cluster
    launch: Launch
    settings: Mapping[str, str]
    partitions: Mapping[str, Partition]

    @classmethod
    def of(cls, cluster: Cluster, *, launch: Launch) -> Site:
        """Ask a cluster for its settings and partitions."""
        shown = _output(cluster.ask("scontrol", "show", "config"))
        pairs = (line.partition("=") for line in shown.splitlines() if "=" in line)
        return cls(
            cluster=cluster,
            launch=launch,
            settings={name.strip(): value.strip() for name, _, value in pairs},
            partitions=_partitions(_output(cluster.ask("sinfo", "--noheader", "--format=%P|%l|%G|%T|%D"))),
        )

    def findings(self) -> Iterator[Finding]:
        """Yield what there is to know of the site."""
        yield from self._programs()
        yield self._configuration()
        if not self.settings:
            found = "its settings are not to be had, so nothing else of SLURM was looked at"
            yield Finding(mark=Mark.BAD, subject="controller", found=found, remedy="see `scontrol show config`")
            return
        accounting = self._accounting()
        yield accounting
        yield from self._places()
        yield from self._gpus()
        yield from self._submissions()
        if accounting.mark is Mark.OK:
            yield from self._accounts()
        yield from self._ends()

    def _programs(self) -> Iterator[Finding]:
        for program, question in _QUESTIONS.items():
            answer = self.cluster.ask(program, *question)
            if shutil.which(program) is None:
                found, remedy = "not in PATH", "load the site's SLURM module, or ask its administrators"
            elif answer is None:
                found, remedy = f"silent for {self.cluster.timeout_seconds:g} s", "ask the site's administrators"
            else:
                found, remedy = _said(answer), "is SLURM_CONF right, and is the controller up (`scontrol ping`)?"
            # `scontrol ping` names every controller, and ends well if all are down, too.
            right = answer is not None and answer.code == 0 and (program != "scontrol" or "is UP" in answer.output)
            yield judged(right, otherwise=Mark.BAD, subject=program, found=found or "answers", remedy=remedy)

    def _configuration(self) -> Finding:
        """Look whether SLURM's commands work without SLURM_CONF: Snakemake's jobs call srun without it."""
        if "SLURM_CONF" not in os.environ:
            return Finding(mark=Mark.OK, subject="SLURM_CONF", found="not set")
        answer = self.cluster.ask("scontrol", "ping", unset=["SLURM_CONF"])
        right = answer is not None and answer.code == 0
        return judged(
            right,
            otherwise=Mark.BAD,
            subject="SLURM_CONF",
            found=f"{os.environ['SLURM_CONF']}, {'and found without it, too' if right else 'and needed by srun'}",
            remedy="Snakemake drops it inside its jobs, whose srun then fails: link /etc/slurm/slurm.conf to it on "
            "every node, or put wrappers of SLURM's commands that set it first in PATH",
        )

    def _accounting(self) -> Finding:
        storage = self.settings.get("AccountingStorageType", "")
        answer = self.cluster.ask("sacct", "--noheader", "--allocations", "--jobs=1", "--format=State")
        off = storage in ("", "(null)", "accounting_storage/none")
        if off:
            found = "off (AccountingStorageType)"
        elif shutil.which("sacct") is None:
            found = f"{storage}, but sacct is not in PATH"
        elif answer is None or answer.code != 0:
            found = f"{storage}, but sacct {f'says: {_said(answer)}' if answer else 'is silent'}"
        else:
            return Finding(mark=Mark.OK, subject="accounting", found=f"{storage}, sacct answers")
        return Finding(
            mark=Mark.NOTE,
            subject="accounting",
            found=found,
            remedy="Snakemake would wait for its jobs for ever, so let it ask squeue (below); trainings need no sacct, "
            "but their GPU hours are not known",
            profile={
                "slurm-status-command": "squeue",
                **self._earlier_status(),
                **({"slurm-no-account": True} if off else {}),
            },
        )

    def _earlier_status(self) -> dict[str, int]:
        """Return what makes Snakemake trust squeue where the controller forgets jobs quickly."""
        kept = _seconds(self.settings.get("MinJobAge", ""))
        if kept is None or kept >= 3 * _FIRST_STATUS_SECONDS:
            return {}
        return {"slurm-init-seconds-before-status-checks": max(1, int(kept) // 3)}

    def _places(self) -> Iterator[Finding]:
        wanted = self.launch.partition
        listed = "; ".join(each.described() for each in self.partitions.values())
        # SLURM takes several, and picks the one in which a job can start first.
        if wanted is not None and not set(wanted.split(",")) <= self.partitions.keys():
            found = f"{listed or 'none'}; launch.partition is {wanted!r}"
            yield Finding(mark=Mark.BAD, subject="partitions", found=found, remedy="name one that is there")
            return
        chosen = self._chosen()
        right = chosen is not None
        yield Finding(
            mark=Mark.OK if right else Mark.BAD,
            subject="partitions",
            found=listed or "none",
            remedy="" if right else "there is no default: say `launch: {partition: NAME}`",
            profile={"default-resources": {"slurm_partition": wanted}} if wanted else {},
        )
        hours = self.launch.hours
        if chosen is not None and hours > chosen.hours:
            found = f"{chosen.name} ends jobs after {chosen.hours:g} h, launch.hours is {hours:g}"
            remedy = "lower launch.hours; a training is requeued and goes on where it was"
            yield Finding(mark=Mark.BAD, subject="time limit", found=found, remedy=remedy)

    def _chosen(self, wanted: str | None = None) -> Partition | None:
        """Return the partition of a name, else the one that trainings go to; None where that is not known."""
        defaults = [each.name for each in self.partitions.values() if each.default]
        name = wanted or self.launch.partition or "".join(defaults[:1])
        return self.partitions.get(name.partition(",")[0])

    def _gpus(self) -> Iterator[Finding]:
        chosen, kind = self._chosen(), self.launch.gpu_type
        if chosen is None or self.launch.gpus == "none":
            return
        if not chosen.gpus:
            elsewhere = [each.name for each in self.partitions.values() if each.gpus]
            without = "train without: `launch: {device: cpu, gpus: none}`"
            remedy = f"name one that has: {', '.join(elsewhere)}" if elsewhere else without
            found = f"none in partition {chosen.name}"
            yield Finding(mark=Mark.BAD if elsewhere else Mark.NOTE, subject="GPUs", found=found, remedy=remedy)
            return
        found = ", ".join(f"{count} {called or 'of no named type'}" for called, count in chosen.gpus.items())
        yield judged(
            kind is None or kind in chosen.gpus,
            otherwise=Mark.BAD,
            subject="GPUs",
            found=f"{found} on a node of partition {chosen.name}",
            remedy=f"launch.gpu_type is {kind!r}, name one of these",
        )
        yield self._asking_for_gpus(chosen)

    def _asking_for_gpus(self, chosen: Partition) -> Finding:
        """Try both ways of asking for a GPU."""
        subject = "asking for GPUs"
        where = words(place(self.launch))
        refused = self._refusal(where)
        if refused is not None:
            remedy = f"are nodes of partition {chosen.name} up (`sinfo`)?"
            found = f"cannot be tried: even a job without GPUs is refused: {refused}"
            return Finding(mark=Mark.NOTE, subject=subject, found=found, remedy=remedy)
        ways = {"gres": "--gres=gpu:1", "gpus": "--gpus-per-node=1"}
        refusals = {name: self._refusal([way, *where]) for name, way in ways.items()}
        taken = [name for name, refusal in refusals.items() if refusal is None]
        return judged(
            self.launch.gpus in taken,
            otherwise=Mark.BAD,
            subject=subject,
            found=f"by {' and '.join(taken)}" if taken else f"refused by gres and by gpus: {refusals['gres']}",
            remedy=f"say `launch: {{gpus: {taken[0]}}}`" if taken else "ask the site how jobs ask for GPUs",
        )

    def _submissions(self) -> Iterator[Finding]:
        """Have SLURM look at the jobs that the config would submit; nothing is submitted."""
        wanted = {"launch": self.launch}
        wanted |= {f"launch.runs.{run}": self.launch.of(run) for run in self.launch.runs}
        for key, site in wanted.items():
            request = words({**resources(site), **site.sbatch})
            refusal = self._refusal(request)
            partition = self._chosen(site.partition)
            up = partition is None or partition.up > 0
            yield judged(
                refusal is None,
                otherwise=Mark.BAD if up else Mark.NOTE,
                subject=f"a job as {key} asks for it",
                found="would be accepted" if refusal is None else f"refused: {refusal}",
                remedy=f"correct {key} ({' '.join(request)})" if up else "no node is up: look again later",
            )

    def _refusal(self, request: list[str]) -> str | None:
        """Return why a job would be refused, None where it would not."""
        answer = self.cluster.ask("sbatch", "--test-only", *request, "--wrap=true")
        if answer is not None and answer.code == 0:
            return None
        return " / ".join(answer.complaint.split("\n")).strip(" /") if answer else "sbatch is silent"

    def _accounts(self) -> Iterator[Finding]:
        user, wanted = getpass.getuser(), self.launch.account
        command = ("sacctmgr", "--noheader", "--parsable2", "show")
        answer = self.cluster.ask(*command, "associations", f"user={user}", "format=Account")
        if answer is None or answer.code != 0:
            return
        accounts = sorted(set(answer.output.split()))
        shown = self.cluster.ask(*command, "user", user, "format=DefaultAccount")
        default = _output(shown).strip()
        enforced = "associations" in self.settings.get("AccountingStorageEnforce", "")
        right = wanted in accounts if wanted else bool(default) or not enforced
        remedy = f"launch.account is {wanted!r}: name one of these, or ask the administrators for one"
        yield Finding(
            mark=Mark.OK if right else Mark.BAD if enforced else Mark.NOTE,
            subject="account",
            found=f"{user} may use {', '.join(accounts) or 'none'}; default: {default or 'none'}",
            remedy="" if right else remedy,
            profile={"default-resources": {"slurm_account": wanted}} if wanted and right else {},
        )

    def _ends(self) -> Iterator[Finding]:
        """Yield how jobs end before their time, and come back."""
        settings = self.settings
        yield judged(
            settings.get("JobRequeue") != "0",
            otherwise=Mark.NOTE,
            subject="JobRequeue",
            found=settings.get("JobRequeue", "unknown"),
            remedy="jobs are not requeued unless they ask for it: say `launch: {sbatch: {requeue: true}}`, and "
            "`slurm-requeue: true` in the profile",
        )
        yield self._preemption()
        kill_wait = _seconds(settings.get("KillWait", ""))
        yield judged(
            kill_wait is None or kill_wait >= _SHORT_KILL_WAIT_SECONDS,
            otherwise=Mark.NOTE,
            subject="KillWait",
            found=settings.get("KillWait", "unknown"),
            remedy="little time to save between TERM and KILL: rely on launch.signal_seconds and launch.state_seconds",
        )
        age = _seconds(settings.get("MinJobAge", ""))
        yield judged(
            age is None or age >= _SHORT_JOB_AGE_SECONDS,
            otherwise=Mark.NOTE,
            subject="MinJobAge",
            found=settings.get("MinJobAge", "unknown"),
            remedy="squeue soon forgets a job that has ended: keep launch.poll_seconds well below it",
        )
        expire = re.search(r"cred_expire=(\d+)", settings.get("AuthInfo", ""))
        waits = f"a requeued job waits {expire[1] if expire else 120} s or a little more before it starts again"
        yield Finding(mark=Mark.OK, subject="requeue", found=f"{waits} (AuthInfo's cred_expire)")

    def _preemption(self) -> Finding:
        mode = self.settings.get("PreemptMode", "OFF")
        options = f"{self.settings.get('SlurmctldParameters', '')},{self.settings.get('PreemptParameters', '')}"
        signalled = "send_user_signal" in options
        if mode.startswith("OFF") or self.settings.get("PreemptType", "").endswith("/none"):
            return Finding(mark=Mark.OK, subject="preemption", found=f"PreemptMode={mode}: none")
        if "CANCEL" in mode:
            remedy = "a preempted training is not requeued but submitted again, launch.resubmissions times at most"
        else:
            remedy = (
                "no preempt_send_user_signal: a preempted training gets TERM only, and has the partition's GraceTime "
                "to save its state; keep launch.state_seconds short"
            )
        found = f"PreemptMode={mode}{', the job is signalled first' if signalled else ''}"
        right = signalled and "CANCEL" not in mode
        return judged(right, otherwise=Mark.NOTE, subject="preemption", found=found, remedy=remedy)


def _partitions(listed: str) -> dict[str, Partition]:
    """Read `sinfo`'s lines of name, time limit, generic resources, state and number of nodes, several a partition."""
    found: dict[str, Partition] = {}
    for line in (each for each in listed.splitlines() if re.fullmatch(r"([^|]*\|){4}\d+\s*", each)):
        label, limit, resources, state, number_of_nodes = (part.strip() for part in line.split("|"))
        name, nodes = label.rstrip("*"), int(number_of_nodes)
        known = found.get(name)
        gpus = dict(known.gpus) if known else {}
        for kind, number in re.findall(r"gpu(?::([^:,()\s]+))?:(\d+)", resources):
            gpus[kind] = max(int(number), gpus.get(kind, 0))
        up = 0 if state.startswith(_NOT_UP) or state.endswith("*") else nodes
        found[name] = Partition(
            name=name,
            default=label.endswith("*"),
            hours=_limit_hours(limit),
            nodes=nodes + (known.nodes if known else 0),
            up=up + (known.up if known else 0),
            gpus=gpus,
        )
    return found


def _limit_hours(text: str) -> float:
    """Return SLURM's [days-]hours:minutes:seconds, or minutes:seconds, in hours; infinite where it names no limit."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text.strip())
    if match is None:
        return math.inf
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return 24 * days + hours + minutes / 60 + seconds / 3600


def _seconds(text: str) -> float | None:
    """Return the number that begins `30 sec`."""
    match = re.match(r"\d+", text)
    return float(match[0]) if match else None


def _output(answer: Answer | None) -> str:
    return answer.output if answer is not None and answer.code == 0 else ""


def _said(answer: Answer) -> str:
    """Return the last line of what a command complained about, which names the cause, else of what it printed."""
    lines = [line.strip() for text in (answer.output, answer.complaint) for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
