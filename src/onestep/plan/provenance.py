"""What Snakemake records of the files of a job that makes several at once: for each file what a job of its own would.

Snakemake decides what runs again by its records: it compares the parameters, inputs and code of the job that made a
file with those of the job that would make it now. A job that measures all metrics of a block has the parameters of all,
so one metric that is added or edited would measure the others again. Records are therefore those of single jobs, and
files that were made together are afterwards as if each had been made alone.

Snakemake's objects are used as they are; this package does not import Snakemake.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

_NEEDED = ("finished", "_clear_cache", "_read_record", "_write_record", "_get_key", "_params", "_input", "_code")


def is_possible(persistence: Any) -> bool:
    """Whether this version of Snakemake keeps its records as expected; without that each file has a job of its own."""
    return all(hasattr(persistence, name) for name in _NEEDED)


def record_each_file(workflow: Any, *, together: tuple[str, ...], single: Iterable[str]) -> None:
    """Record the files of the rules `together` as if the rules `single` had made each of them.

    Args:
        workflow: Snakemake's workflow, whose jobs are planned.
        together: Beginnings of the names of rules that make several files.
        single: Names of the rules that make each of these files alone.
    """
    persistence, dag = workflow.persistence, workflow.dag
    finished: Callable[[Any], Any] = persistence.finished
    rules = [workflow.get_rule(name) for name in single if workflow.is_rule(name)]

    async def finished_each(job: Any) -> None:
        await finished(job)
        for file in job.output if job.rule.name.startswith(together) else ():
            persistence._clear_cache()  # which has what was there before
            record = persistence._read_record(key := persistence._get_key(file))
            if record is None:  # as under --drop-metadata
                continue
            rule = next(rule for rule in rules if rule.is_producer(file))
            alone = type(job)(rule, dag, wildcards_dict=rule.get_wildcards(file), targetfile=file)
            record.params, record.input = persistence._params(alone), persistence._input(alone)
            record.code = persistence._code(rule)
            persistence._write_record(key, record)
        persistence._clear_cache()

    persistence.finished = finished_each
