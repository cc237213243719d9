"""The verbs that write and print tables and pages."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def tabulate(*, table: Mapping[str, Any], training_code: Mapping[str, Any], results: Path, output: Path) -> int:
    """Write one table as JSON, CSV, Markdown and LaTeX, and its chart as SVG.

    Args:
        table: The table with its rows, as the workflow composes it (JSON).
        training_code: Fingerprint of today's training code by run (JSON).
        results: The results folder.
        output: Folder of the files.
    """
    from onestep.report.tabulation import write_tables

    write_tables(table, results=results, training_code=training_code, folder=output)
    return 0


def report(*, config: Path, results: Path, benchmarks: Path, output: Path) -> int:
    """Write the results page.

    Args:
        config: The config.
        results: The results folder.
        benchmarks: Folder of Snakemake's benchmark files; may be absent.
        output: The page (.html).
    """
    from onestep.report.evidence import read_evidence
    from onestep.report.page import write_page

    evidence = read_evidence(
        results,
        config=config,
        benchmarks=benchmarks,
        reproduce=(f"snakemake --directory {Path.cwd().name} --profile profiles/local",),
    )
    write_page(output, evidence=evidence)
    return 0


def show(table: Path, /, *, page: Path | None = None) -> int:
    """Print a table.

    Args:
        table: The table (.json).
        page: Also print where this results page is.
    """
    print(table.with_suffix(".md").read_text())
    if page is not None:
        print(f"Results page: {page.resolve()}")
    return 0


def compare(first: Path, second: Path, /) -> int:
    """Compare two measurements; the exit code is 1 if they are not comparable.

    Args:
        first: A measurement (.json).
        second: The measurement to compare it with (.json).
    """
    from onestep.report.comparison import compare as comparison

    lines = comparison(first, second)
    print("\n".join(lines))
    return int(any(line.startswith("not comparable") for line in lines))
