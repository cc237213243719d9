"""What Snakemake's terminal shows: one line a job in words of the experiment, and of a dry run a summary.

Snakemake's log records are read by their attributes alone; this package does not import Snakemake.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    "Exiting because a job execution failed",
    "Reasons:",
    "Some jobs were triggered by provenance",
    "Rules with provenance triggered jobs",
)
_FAILED, _DRY = "At least one job did not complete successfully", "This was a dry-run"
_REASONS = {
    "Missing output files": "new",
    "Params have changed": "its config has changed",
    "Code has changed": "its code has changed",
    "Updated input files": "its input has changed",
    "Set of input files has changed": "its inputs have changed",
    "Forced execution": "forced",
}
_SHOWN_LINES = 8  # of the log of a job that failed without a line of its own
_LOG_END = 2**16  # bytes


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job of a plan: its rule, its message, the run, dataset, teacher or table that it is about, and why it runs."""

    rule: str
    message: str
    subject: str
    reason: str


class Story(logging.Formatter):
    """A formatter of Snakemake's records, and a filter (`keeps`); other records have the format of `usual`."""

    def __init__(self, usual: logging.Formatter | None) -> None:
        super().__init__()
        self._usual = usual or logging.Formatter()
        self._planned: list[Job] = []
        self._failures: list[tuple[str, list[Path]]] = []

    def attach(self, handlers: Iterable[logging.Handler], *, dry: bool) -> None:
        """Take the place of the formatter of each handler."""
        for handler in handlers:
            self._usual = handler.formatter or self._usual
            handler.setFormatter(self)
            handler.addFilter(lambda record: self.keeps(record, dry=dry))

    def keeps(self, record: logging.LogRecord, *, dry: bool) -> bool:
        """Whether a record is shown; the jobs of a dry run are shown together at its end."""
        event, text = str(getattr(record, "event", None)), str(record.msg)
        if event == "job_info":
            if dry:
                self._planned.append(_job_of(record.__dict__))
            return not dry and record.__dict__["rule_name"] != "all"
        if event == "job_error":
            self._failures.append((_said(record.__dict__), [Path(each) for each in record.__dict__["log"]]))
        return not (text.startswith(_NOISE) or _FAILED in text or event in ("shellcmd", "run_info", "job_started"))

    def format(self, record: logging.LogRecord) -> str:
        """Return the text of a record."""
        event, text = str(getattr(record, "event", None)), str(record.msg)
        if event == "job_info":
            return f"{time.strftime('%H:%M:%S')}  {_said(record.__dict__)}"
        if event == "job_error":
            return f"{time.strftime('%H:%M:%S')}  failed: {_said(record.__dict__)}"
        if text.startswith(_DRY):
            return "\n".join(summary_lines(self._planned))
        return self._usual.format(record)

    def failure_lines(self) -> list[str]:
        """Return of each job that failed its own line and its log."""
        found = []
        for said, logs in self._failures:
            lines = [line for log in logs for line in own_lines(log)]
            found += [f"failed: {said}, see {' '.join(map(str, logs)) or 'above'}", *(lines or ["no line in its log"])]
        return found


def own_lines(log: Path) -> list[str]:
    """Return the line by which a verb reports its error in a log, `onestep VERB: place: ...`, else the last lines."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _LOG_END))
            lines = [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    except OSError:
        return []
    reported = [line for line in lines if re.match(r"onestep [a-z ]+: ", line)]
    return reported[-1:] or lines[-_SHOWN_LINES:]


def summary_lines(jobs: Sequence[Job]) -> list[str]:
    """Return what would run, one line for each subject, with the number of its jobs by stage, and why."""
    jobs = [job for job in jobs if job.rule != "all"]
    if not jobs:
        return ["Nothing to be done."]
    subjects: dict[str, list[Job]] = {}
    for job in jobs:
        subjects.setdefault(job.subject, []).append(job)
    width = min(36, max(map(len, subjects)))
    lines = [f"Would run {len(jobs):,} jobs:", ""]
    for subject, found in subjects.items():
        stages: dict[str, list[Job]] = {}
        for job in found:
            stages.setdefault(_stage(job.rule), []).append(job)
        counted = [
            some[0].message if stage == "train" and some[0].message else _counted(stage, len(some))
            for stage, some in stages.items()
        ]
        reasons = dict.fromkeys(job.reason for job in found if job.reason)
        why = f" ({', '.join(reasons)})" if reasons else ""
        lines.append(f"  {subject:<{width}}  {', '.join(counted)}{why}")
    totals: dict[str, int] = {}
    for job in jobs:
        totals[_stage(job.rule)] = totals.get(_stage(job.rule), 0) + 1
    return [*lines, "", "In all: " + ", ".join(f"{count:,} {stage}" for stage, count in totals.items()), ""]


def _counted(stage: str, count: int) -> str:
    return stage if count == 1 else f"{stage} {count:,}"


def _stage(rule: str) -> str:
    return next((stage for stage in ("train", "observe", "extract") if rule.startswith(f"{stage}_")), rule)


def _job_of(record: dict[str, Any]) -> Job:
    rule, found = str(record["rule_name"]), dict(record.get("wildcards") or {})
    model = found.get("model") or str(found.get("block", "")).partition("/")[0]
    named = [found[key] for key in ("run", "dataset", "teacher", "input", "class_embeddings", "study") if key in found]
    subject = rule.removeprefix("train_") if rule.startswith("train_") else model.partition("@")[0]
    if not subject:
        subject = named[0] if named else {"tabulate": "tables"}.get(rule, "page" if rule == "report" else rule)
    return Job(rule=rule, message=str(record.get("rule_msg") or ""), subject=subject, reason=_why(record))


def _why(record: dict[str, Any]) -> str:
    """Return the reason of a job; empty where it follows from that of another job."""
    reason = str(record.get("reason", ""))
    found = [text for beginning, text in _REASONS.items() if beginning in reason]
    return ", ".join(found)


def _said(record: dict[str, Any]) -> str:
    """Return a job's message, or its rule."""
    text = str(record.get("rule_msg") or record.get("rule_name", "a job"))
    return re.sub(r"@(\d+)", lambda found: f" at {int(found[1]):,} images", text)
