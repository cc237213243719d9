"""What must hold between the sections of a config from the trained networks on: samples, metrics, tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from onestep import plugins
from onestep._config.problems import Place, Problem, exactly_one
from onestep._config.run_checks import denoisers, unknown
from onestep._config.values import Dataset, Experiment, Metric, Row, Table


def table_problems(experiment: Experiment) -> Iterator[Problem]:
    """Yield what is wrong with metrics and tables."""
    for name, metric in experiment.metrics.items():
        yield from unknown(("metrics", name, "features"), metric.features, experiment.features, of="features")
    for name, dataset in experiment.datasets.items():
        yield from _reference_problems(dataset, experiment, place=("datasets", name, "references"))
    for name, table in experiment.tables.items():
        place = ("tables", name)
        yield from unknown((*place, "dataset"), table.dataset, experiment.datasets, of="datasets")
        yield from _seed_problems(table.seeds, place=(*place, "seeds"))
        yield from _column_problems(table, experiment, place=place)
        yield from _curve_problems(table, place=(*place, "curves"))
        for index, row in enumerate(table.rows):
            yield from _row_problems(row, table, experiment, place=(*place, "rows", index))


def _reference_problems(dataset: Dataset, experiment: Experiment, *, place: Place) -> Iterator[Problem]:
    """Yield what is wrong with the published references of a dataset."""
    comparing = {
        name: metric
        for name, metric in experiment.metrics.items()
        if "real" in plugins.load("metrics", metric.name).compares
    }
    for metric, source in dataset.references.items():
        yield from unknown((*place, metric), metric, comparing, of="metrics that compare with real images")
        yield from unknown((*place, metric), source, experiment.inputs, of="inputs")


def _seeds(text: str) -> range:
    """Return the seeds of a block "first-last", both included."""
    first, last = map(int, text.split("-"))
    return range(first, last + 1)


def _seed_problems(texts: Sequence[str], *, place: Place) -> Iterator[Problem]:
    blocks = [_seeds(text) for text in texts]
    for index, (text, block) in enumerate(zip(texts, blocks, strict=True)):
        here = (*place, index)
        common = [texts[other] for other in range(index) if _overlap(block, blocks[other])]
        if not block:
            yield Problem(here, _backwards(text))
        elif common:
            yield Problem(here, f"{text} has seeds in common with {common[0]}; blocks are independent samples")
        elif blocks[0] and len(block) != len(blocks[0]):
            yield Problem(here, f"{text} has {len(block)} seeds, expected {len(blocks[0])} as in {texts[0]}")


def _backwards(text: str) -> str:
    return f"found the text {text!r}, expected first-last, the first not above the last"


def _overlap(one: range, other: range) -> bool:
    return max(one.start, other.start) < min(one.stop, other.stop)


def _column_problems(table: Table, experiment: Experiment, *, place: Place) -> Iterator[Problem]:
    numbers = _numbers(experiment)
    for column, source in table.columns.items():
        yield from unknown((*place, "columns", column), source, numbers, of="numbers")
    images = len(_seeds(table.seeds[0]))
    for name in dict.fromkeys(source.partition(".")[0] for source in table.columns.values()):
        needed = _least_images(experiment.metrics[name]) if name in experiment.metrics else 0
        if 0 < images < needed:
            few = f"{table.seeds[0]} has {images} seeds, expected at least {needed}: so many images metric {name} needs"
            yield Problem((*place, "seeds", 0), few)


def _numbers(experiment: Experiment) -> list[str]:
    """Return every "metric.value" there is."""
    chosen = {name: plugins.load("metrics", metric.name) for name, metric in experiment.metrics.items()}
    return [f"{name}.{value}" for name, metric in chosen.items() for value in metric.values]


def _least_images(metric: Metric) -> int:
    """Return how many images a metric needs: one in each split, or one more than neighbours."""
    return max(metric.options.get("splits") or 1, (metric.options.get("neighbours") or 0) + 1)


def _curve_problems(table: Table, *, place: Place) -> Iterator[Problem]:
    if table.curves is not None:
        yield from unknown((*place, "column"), table.curves.column, table.columns, of="columns")
        if not _seeds(table.curves.seeds):
            yield Problem((*place, "seeds"), _backwards(table.curves.seeds))


def _row_problems(row: Row, table: Table, experiment: Experiment, *, place: Place) -> Iterator[Problem]:
    given = [key for key in ("run", "teacher") if getattr(row, key) is not None]
    if wrong := exactly_one(("run", "teacher"), given=given):
        yield Problem(place, wrong)
    yield from unknown((*place, "run"), row.run, denoisers(experiment), of="runs of a denoiser")
    yield from unknown((*place, "teacher"), row.teacher, experiment.teachers, of="teachers")
    yield from unknown((*place, "sampler"), row.sampler, experiment.samplers, of="samplers")
    for column in row.published:
        yield from unknown((*place, "published", column), column, table.columns, of="columns")
    yield from _strangers(row, table, experiment, place=place)


def _strangers(row: Row, table: Table, experiment: Experiment, *, place: Place) -> Iterator[Problem]:
    """Yield a row whose network learned from another dataset than the one the table compares with.

    A model's numbers are filed under the model alone, so they are of one dataset.
    """
    teacher = experiment.teachers.get(row.teacher or "")
    run = experiment.runs.get(row.run or (teacher and teacher.run) or "")
    if run is not None and run.dataset != table.dataset and {run.dataset, table.dataset} <= experiment.datasets.keys():
        yield Problem(place, f"learned from dataset {run.dataset}, expected {table.dataset}, as the table says")
