"""The verbs that print: a table, and what differs between two measurements or runs."""

from __future__ import annotations

from pathlib import Path

from onestep.files import read_text


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
