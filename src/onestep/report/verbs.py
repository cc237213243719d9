"""The verbs about tables: to write one, to print it, and what differs between two measurements or runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onestep.files import read_text


def tabulate(
    *,
    config: Path | None = None,
    name: str | None = None,
    table: Mapping[str, Any] | None = None,
    training_code: Mapping[str, Any] | None = None,
    results: Path,
    output: Path,
) -> int:
    """Write one table as JSON, CSV, Markdown and LaTeX, and its chart as SVG, from the measurements that exist.

    Args:
        config: The config, in the working directory.
        name: Name of the table in it.
        table: Instead of both: the table with its rows, as the workflow composes it (JSON).
        training_code: Beside it: fingerprint of today's training code by run (JSON).
        results: The results folder.
        output: Folder of the files.
    """
    from onestep.plan import Plan, report
    from onestep.report.tabulation import tabulate as write

    if table is not None:
        return write(table=table, training_code=training_code or {}, results=results, output=output)
    if config is None or name is None:
        raise ValueError(f"--{'name' if config else 'config'}: got none, expected it beside the other. Fix: add it")
    plan = Plan.read(config)
    if name not in plan.experiment.tables:
        raise ValueError(f"--name: got {name!r}, expected one of: {', '.join(plan.experiment.tables)}")
    table, codes = (json.loads(each(plan, name)) for each in (report.table_options, report.table_training_code))
    return write(table=table, training_code=codes, results=results, output=output)


def show(table: Path, /, *, page: Path | None = None) -> int:
    """Print a table.

    Args:
        table: The table (.json).
        page: Also print where this results page is.
    """
    print(read_text(table.with_suffix(".md")))
    if page is not None:
        print(f"Results page: {page.resolve()}")
    return 0


def compare(first: Path, second: Path, /, *, output: Path | None = None) -> int:
    """Compare two measurements, two runs or two results folders; the exit code is 1 if numbers are not comparable.

    Examples:
      onestep compare found.json other.json
      onestep compare digits_d2o digits_d2o_f --output curves.png
      onestep compare demo/results copy/results --output curves.svg

    Args:
        first: A measurement (.json), a run (name or folder), or a results folder.
        second: Another one of the same kind.
        output: Also draw the curves of both here: losses, and metrics against images (.svg or .png).
    """
    from onestep.report.comparison import check_picture, write_picture
    from onestep.report.comparison import compare as compared

    if output is not None:
        check_picture(output)
    found = compared(first, second)
    print(found.text())
    if output is not None:
        write_picture(found, output)
        print(f"\n{output}")
    return int(not found.comparable)
