"""The results page: all that was measured, in one file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from onestep.config.sections import Experiment
from onestep.files import canonical_json
from onestep.fingerprint import Fingerprints
from onestep.plan.numbers import Numbers
from onestep.plan.paths import RESULTS
from onestep.plan.rows import Rows
from onestep.plan.style import style_of


class Page:
    """The page.

    Args:
        experiment: The config.
        document: The same as a document.
        rows: The rows of its tables that are measured.
        numbers: The points of its curves.
        fingerprints: Of the code that is here.
    """

    def __init__(
        self,
        experiment: Experiment,
        *,
        document: Mapping[str, Any],
        rows: Rows,
        numbers: Numbers,
        fingerprints: Fingerprints,
    ) -> None:
        self._experiment, self._document, self._fingerprints = experiment, document, fingerprints
        self._rows, self._numbers = rows, numbers

    def inputs(self, wildcards: Any) -> list[str]:
        """All that the page shows: tables, grids, curves, logs."""
        return list(dict.fromkeys([*self._of_tables(), *self._of_runs()]))

    def _of_tables(self) -> Iterator[str]:
        for name, table in self._experiment.tables.items():
            yield f"{RESULTS}/tables/{name}.json"
            yield from (
                f"{RESULTS}/grids/{row.model}/{row.sampler}/{table.seeds[0]}.npz" for row in self._rows.of(name)
            )
            yield from (number.path for number in self._numbers.of_curves(name))

    def _of_runs(self) -> Iterator[str]:
        for run in self._experiment.runs:
            yield from (f"{RESULTS}/runs/{run}/{file}" for file in ("run.yaml", "log.jsonl", "summary.json"))

    def options(self, wildcards: Any) -> str:
        """The whole config: the page shows it. But it says nothing of where inputs were downloaded and runs trained."""
        elsewhere = ("mirrors", "launch", "container")
        return canonical_json({key: value for key, value in self._document.items() if key not in elsewhere})

    def code(self, wildcards: Any) -> str:
        """Fingerprint of the page: its code, and the template and style sheet beside it."""
        metrics = [f"onestep.metrics.{metric.name}" for metric in self._experiment.metrics.values()]
        page = self._fingerprints.fingerprint("onestep.cli:report", plugins=metrics)
        return " ".join([page, *style_of("*.css", "*.jinja")])
