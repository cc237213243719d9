"""What Snakemake's terminal shows: one line a job by its message, and of a dry run a summary.

Snakemake's log records are read by their attributes alone; this package does not import Snakemake.
"""

from __future__ import annotations

import logging
import re
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onestep.plan.pace import Pace

# Lines of Snakemake that name no job of the experiment, by their beginnings.
_NOISE = (
    "Select jobs to execute",
    "Execute ",
    "Building DAG of jobs",
    "Using shell:",
    "Provided ",
    "Rules claiming more threads",
    "Conda environments: ignored",
    "Singularity containers: ignored",
    "Assuming unrestricted shared filesystem",
    "host: ",
    "Complete log(s):",
    "Elapsed time:",
    "RuleException:\nCalledProcessError",
    "Exiting because a job execution failed",
    "Reasons:",
    "Would remove temporary output",
    "Removing temporary output",
    "Some jobs were triggered by provenance",
    "Rules with provenance triggered jobs",
)
_UNSEEN = ("shellcmd", "run_info", "job_started", "group_info", "job_finished", "progress", "resources_info")
_FAILED, _DRY = "At least one job did not complete successfully", "This was a dry-run"
_NEW = "new"
_REASONS = {
    "Missing output files": _NEW,
    "Params have changed": "its config has changed",
    "Code has changed": "its code has changed",
    "Updated input files": "its input has changed",
    "Set of input files has changed": "its inputs have changed",
    "Forced execution": "forced",
}
_STAGES = (
    "fetch",
    "prepare",
    "convert",
    "resolve",
    "embed",
    "train",
    "sample",
    "observe",
    "extract",
    "measure",
    "select",
    "work",
)
_INPUTS, _TABLES, _PAGE = "inputs", "tables", "page"
_REPORT = re.compile(r"onestep [a-z ]+: ")
_SHOWN_LINES = 8  # of the log of a job that failed without a line of its own
_LOG_END = 2**16  # bytes


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job of a plan: its rule, its message, the run, dataset, teacher or table that it is about, and why it runs."""

    rule: str
    message: str
    subject: str
    reasons: tuple[str, ...] = ()


class Story(logging.Formatter):
    """A formatter of Snakemake's records, and a filter (`keeps`); other records have the format of `usual`."""

    def __init__(self, usual: logging.Formatter | None) -> None:
        super().__init__()
        self._usual = usual or logging.Formatter()
        self._planned: list[Job] = []
        self._failures: list[tuple[str, list[Path]]] = []
        self._of_groups: list[tuple[str, list[Path]]] = []  # whose logs have no error
        self._messages: dict[Any, str] = {}  # by job; the record of an error has none
        self._pace = Pace()

    def attach(self, handlers: Iterable[logging.Handler], *, dry: bool) -> None:
        """Take the place of the formatter of each handler."""
        for handler in handlers:
            self._usual = handler.formatter or self._usual
            handler.setFormatter(self)
            handler.addFilter(lambda record: self.keeps(record, dry=dry))

    def keeps(self, record: logging.LogRecord, *, dry: bool) -> bool:
        """Whether a record is shown; the jobs of a dry run are shown together at its end."""
        event, text = str(getattr(record, "event", None)), str(record.msg)
        if not dry:
            self._follow(event, record.__dict__)
        if event == "job_info":
            self._messages[record.__dict__.get("jobid")] = _said(record.__dict__)
            if dry:
                self._planned.append(_job_of(record.__dict__))
            return not dry and record.__dict__["rule_name"] != "all"
        if event == "job_error":
            failure = self._failed(record), [Path(each) for each in record.__dict__["log"]]
            # Of a group that fails Snakemake reports all jobs, also those that were done, or had not begun.
            if record.__dict__.get("indent") and not any(map(_reported, failure[1])):
                self._of_groups.append(failure)
                return False
            self._failures.append(failure)
        return not (text.startswith(_NOISE) or _FAILED in text or event in _UNSEEN)

    def _follow(self, event: str, facts: dict[str, Any]) -> None:
        """Keep how far the workflow is; its own last rule, which computes nothing, is no job."""
        if event == "run_info":
            counts: Counter[str] = Counter()
            for rule, count in dict(facts.get("stats") or {}).items():
                counts[_stage(str(rule))] += count if rule not in ("total", "all") else 0
            self._pace.plan(counts)
        elif event == "job_info":
            self._pace.begin(facts.get("jobid"), _stage(str(facts["rule_name"])), time.monotonic())
        elif event == "job_finished":
            self._pace.end(facts.get("job_id"), time.monotonic())

    def format(self, record: logging.LogRecord) -> str:
        """Return the text of a record."""
        event, text = str(getattr(record, "event", None)), str(record.msg)
        if event == "job_info":
            pace = self._pace.text(time.monotonic())
            return f"{time.strftime('%H:%M:%S')}  {f'[{pace}]  ' if pace else ''}{_said(record.__dict__)}"
        if event == "job_error":
            return f"{time.strftime('%H:%M:%S')}  failed: {self._failed(record)}"
        if event == "group_error":
            jobs, logs = len(record.__dict__["job_error_info"]), " ".join(map(str, record.__dict__["aux_logs"]))
            return f"{time.strftime('%H:%M:%S')}  failed: a group of {jobs} jobs, see {logs or 'its jobs'}"
        if text.startswith(_DRY):
            return "\n".join(summary_lines(self._planned))
        return self._usual.format(record)

    def _failed(self, record: logging.LogRecord) -> str:
        return self._messages.get(record.__dict__.get("jobid")) or _said(record.__dict__)

    def failure_lines(self) -> list[str]:
        """Return of each job that failed its own line and its log; of a group without a line of its own all jobs."""
        found = []
        for message, logs in self._failures or self._of_groups:
            lines = [line for log in logs for line in own_lines(log)]
            found += [
                f"failed: {message}, see {' '.join(map(str, logs)) or 'above'}",
                *(lines or ["no line in its log"]),
            ]
        return found


def own_lines(log: Path) -> list[str]:
    """Return the last lines by which a verb reports errors in a log, `onestep VERB: place: ...`, else its end."""
    lines = _last_lines(log)
    reported = [bool(_REPORT.match(line)) for line in lines]
    if not any(reported):
        return lines[-_SHOWN_LINES:]
    last = len(lines) - 1 - reported[::-1].index(True)
    first = next((place + 1 for place in range(last, -1, -1) if not reported[place]), 0)
    return lines[first : last + 1]


def _last_lines(log: Path) -> list[str]:
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _LOG_END))
            return [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    except OSError:
        return []


def _reported(log: Path) -> bool:
    """Whether a verb reports an error in a log."""
    return any(map(_REPORT.match, _last_lines(log)))


def summary_lines(jobs: Sequence[Job]) -> list[str]:
    """Return what would run, one line for each subject, with the number of its jobs by stage, and why."""
    jobs = [job for job in jobs if job.rule != "all"]
    if not jobs:
        return ["Nothing to be done."]
    stages: dict[str, set[str]] = {}
    for job in jobs:
        stages.setdefault(job.subject, set()).add(_stage(job.rule))
    subjects: dict[tuple[int, str], list[Job]] = {}
    for job in jobs:
        subjects.setdefault((_place(job, stages[job.subject]), job.subject), []).append(job)
    all_new = all(job.reasons in ((), (_NEW,)) for job in jobs)
    width = min(36, max(len(subject) for _, subject in subjects))
    lines = [f"Would run {len(jobs):,} jobs{', whose results are not here yet' if all_new else ''}:", ""]
    for (_, subject), found in sorted(subjects.items()):
        reasons = [] if all_new else list(dict.fromkeys(reason for job in found for reason in job.reasons))
        why = f" ({', '.join(reasons)})" if reasons else ""
        lines.append(f"  {subject:<{width}}  {', '.join(_stages_of(found))}{why}")
    totals = Counter(_stage(job.rule) for job in jobs)
    ordered = sorted(totals, key=lambda stage: _STAGES.index(stage) if stage in _STAGES else len(_STAGES))
    return [*lines, "", "In all: " + ", ".join(f"{totals[stage]:,} {stage}" for stage in ordered), ""]


def _stages_of(jobs: Sequence[Job]) -> Iterator[str]:
    """Yield the number of jobs of each stage, and of a training what it will do."""
    counts = Counter(_stage(job.rule) for job in jobs)
    for stage, count in counts.items():
        message = next((job.message for job in jobs if stage == "train" and _stage(job.rule) == stage), "")
        if message:
            yield message.removeprefix(f"train {jobs[0].subject}: ") if count == 1 else f"{stage} {count:,}"
        elif stage != "resolve":
            yield stage if count == 1 else f"{stage} {count:,}"


def _stage(rule: str) -> str:
    variants = ("prepare", "convert", "train", "sample", "observe", "extract", "measure")
    return next((stage for stage in variants if rule.startswith(f"{stage}_")), rule)


def _place(job: Job, stages: Collection[str]) -> int:
    """Return the place of a job's subject, of which there are jobs of these stages.

    The order is inputs, datasets, teachers, runs, studies, tables, page.
    """
    ends = {"study": 4, "tabulate": 5, "report": 6}
    if job.subject == _INPUTS or job.rule in ends:
        return ends.get(job.rule, 0)
    if {"train", "resolve"} & set(stages):
        return 3
    return 1 if "prepare" in stages else 2 if "convert" in stages else 3


def _job_of(record: dict[str, Any]) -> Job:
    rule, found = str(record["rule_name"]), dict(record.get("wildcards") or {})
    model = found.get("model") or str(found.get("block", "")).partition("/")[0]
    named = [found[key] for key in ("run", "dataset", "teacher", "input", "class_embeddings", "study") if key in found]
    fixed = {"fetch": _INPUTS, "tabulate": _TABLES, "report": _PAGE}
    if rule.startswith("train_"):
        subject = rule.removeprefix("train_")
    else:
        subject = fixed.get(rule) or model.partition("@")[0] or (named[0] if named else rule)
    reason = str(record.get("reason", ""))
    reasons = tuple(text for beginning, text in _REASONS.items() if beginning in reason)
    return Job(rule=rule, message=str(record.get("rule_msg") or ""), subject=subject, reasons=reasons)


def _said(record: dict[str, Any]) -> str:
    """Return a job's message, or its rule."""
    text = str(record.get("rule_msg") or record.get("rule_name", "a job"))
    text = re.sub(r"/(\w+)/(\d+-\d+)$", r" by \1, seeds \2", text)
    return re.sub(r"@(\d+)", lambda found: f" at {int(found[1]):,} images", text)
