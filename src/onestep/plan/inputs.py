"""What comes from outside: where from, to which path, and which of it is needed at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from onestep.config.sections import Experiment
from onestep.files import canonical_json
from onestep.inputs import absent, is_offline, placed_at


class Inputs:
    """The section `inputs`.

    Args:
        experiment: The config.
        blocks: The section as a document.
    """

    def __init__(self, experiment: Experiment, *, blocks: Mapping[str, Any]) -> None:
        self._experiment, self._blocks = experiment, blocks

    def fetched_from(self, wildcards: Any) -> str:
        """Where an input comes from."""
        source = self.source(wildcards.input)
        return canonical_json({key: value for key, value in source.items() if key != "licence"})

    def waits_for(self, wildcards: Any) -> list[str]:
        """Nothing; but where the network must not be asked, an absent input stops the workflow before any job.

        Raises:
            ValueError: The input is not on this machine; how to bring it.
        """
        said = absent(self.source(wildcards.input), name=wildcards.input) if is_offline() else None
        if said is not None:
            raise ValueError(said)
        return []

    def source(self, name: str) -> dict[str, Any]:
        """Return an input's block of the config."""
        return self._blocks[name]

    def path(self, name: str) -> str:
        """Return where an input lies once it is fetched."""
        return str(placed_at(self.source(name), name=name))

    @property
    def needed(self) -> list[str]:
        """The inputs that the runs and tables come from, in the order of the config."""
        needed = set(_needed(self._experiment))
        return [name for name in self._experiment.inputs if name in needed]


def _needed(experiment: Experiment) -> Iterator[str | None]:
    """Yield what runs and tables come from: the names of inputs, and None for what no input is needed for."""
    runs, tables = experiment.runs.values(), experiment.tables.values()
    for name in _needed_datasets(experiment):
        yield experiment.datasets[name].input
        yield from experiment.datasets[name].references.values()
    teachers = {run.teacher for run in runs} | {row.teacher for table in tables for row in table.rows}
    yield from (experiment.teachers[name].pickle for name in teachers - {None})
    for discriminator in (run.discriminator for run in runs if run.discriminator is not None):
        yield from (experiment.backbones[name].input for name in discriminator.backbones)
        if discriminator.class_embeddings is not None:
            yield experiment.class_embeddings[discriminator.class_embeddings].input
    metrics = {source.partition(".")[0] for table in tables for source in table.columns.values()}
    yield from (experiment.features[experiment.metrics[name].features].input for name in metrics)


def _needed_datasets(experiment: Experiment) -> set[str]:
    """Return the datasets that runs learn from, tables compare with, or class embeddings are computed of."""
    tables = experiment.tables.values()
    compared = {each.dataset for table in tables for each in (table, *table.rows)}
    computed = {each.dataset for each in experiment.class_embeddings.values()}
    return {run.dataset for run in experiment.runs.values()} | (compared | computed) - {None}
