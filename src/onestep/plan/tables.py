"""Numbers side by side, with what was published and what trained them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onestep import components
from onestep.config.sections import Experiment
from onestep.config.sections import RowBlock as Row
from onestep.config.sections import TableBlock as Table
from onestep.files import canonical_json
from onestep.fingerprint import Fingerprints
from onestep.models import Selected, Snapshot
from onestep.plan.numbers import Numbers
from onestep.plan.paths import RESULTS, weights
from onestep.plan.rows import Rows
from onestep.plan.style import style_of
from onestep.plan.training import Training


class Tables:
    """The section `tables`.

    Args:
        experiment: The config.
        blocks: The section as a document.
        rows: Its rows that are measured.
        numbers: What is measured of them.
        training: What trains them.
        fingerprints: Of the code that is here.
    """

    def __init__(
        self,
        experiment: Experiment,
        *,
        blocks: Mapping[str, Any],
        rows: Rows,
        numbers: Numbers,
        training: Training,
        fingerprints: Fingerprints,
    ) -> None:
        self._experiment, self._blocks, self._fingerprints = experiment, blocks, fingerprints
        self._rows, self._numbers, self._training = rows, numbers, training

    @property
    def files(self) -> list[str]:
        """The tables, each under its Markdown name."""
        return [f"{RESULTS}/tables/{name}.md" for name in self._experiment.tables]

    def measurements(self, wildcards: Any) -> list[str]:
        """Every number of a table."""
        return [number.path for number in self._numbers.of_table(wildcards.table)]

    def summaries(self, wildcards: Any) -> list[str]:
        """What each run of a table says of itself."""
        runs = dict.fromkeys(row.name for row in self._rows.trained(wildcards.table))
        return [f"{RESULTS}/runs/{run}/summary.json" for run in runs]

    def choices(self, wildcards: Any) -> list[str]:
        """Which snapshots were chosen for a table."""
        chosen = [row.model for row in self._rows.of(wildcards.table) if isinstance(row.model, Selected)]
        return [str(Path(path).with_suffix(".json")) for path in dict.fromkeys(map(weights, chosen))]

    def options(self, wildcards: Any) -> str:
        """A table's layout, the metrics of its columns, and its rows."""
        table, block = self._experiment.tables[wildcards.table], self._blocks[wildcards.table]
        metrics = dict.fromkeys(source.partition(".")[0] for source in table.columns.values())
        told = {
            "name": wildcards.table,
            "layout": {key: value for key, value in block.items() if key not in ("rows", "curves")},
            "drawn": table.drawn,
            "metrics": {metric: {"name": self._experiment.metrics[metric].name} for metric in metrics},
            "rows": [self._row(row, table) for row in table.rows],
        }
        return canonical_json(told)

    def _row(self, row: Row, table: Table) -> dict[str, Any]:
        """Return what `onestep tabulate` is told of a row."""
        sources = {column: number.source for column, number in row.published.items() if number.source is not None}
        told = {
            "run": row.run or row.teacher,
            "label": row.label or row.run or row.teacher,
            "dataset": table.dataset_of(row),
            "published": {column: number.value for column, number in row.published.items()},
            "sources": sources,
        }
        if not row.is_measured:
            nothing = dict.fromkeys(("sampler", "model", "images_seen", "ema"))
            return {**told, **nothing, "nfe": row.nfe, "images": row.images}
        model = self._rows.model(row, table)
        return {
            **told,
            "sampler": row.sampler,
            "nfe": self._evaluations(row.sampler),
            "images": None,
            "images_seen": model.images if isinstance(model, Snapshot) else None,
            "model": str(model),
            "ema": None if row.run is None else row.ema or self._experiment.runs[row.run].ema.half_life,
        }

    def _evaluations(self, sampler: str) -> int:
        chosen = self._experiment.samplers[sampler]
        return components.outline("sampling", chosen.name)(**chosen.options).nfe

    def training_code(self, wildcards: Any) -> str:
        """The training code that is here now, by run: a table marks the runs that other code trained."""
        trained = self._rows.trained(wildcards.table)
        return canonical_json({row.name: self._training.code_of(row.name) for row in trained})

    def code(self, wildcards: Any) -> str:
        """Fingerprint of the table writers, and of the style of their charts."""
        writers = self._fingerprints.fingerprint("onestep.cli:tabulate")
        return " ".join([writers, *style_of("colours.css", "chart.css")])
