"""What must hold between the sections of a config from the trained networks on: samples, metrics, tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from onestep import plugins
from onestep.config.messages import Place, Problem, exactly_one, missing_key, not_among
from onestep.config.run import Run
from onestep.config.run_checks import denoisers, unknown
from onestep.config.sections import DatasetBlock, Experiment, MetricBlock, RowBlock, TableBlock


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
        yield from _selection_problems(table, experiment, place=place)
        yield from _curve_problems(table, place=(*place, "curves"))
        for index, row in enumerate(table.rows):
            yield from _row_problems(row, table, experiment, place=(*place, "rows", index))
    yield from _wanderers(experiment)


def _reference_problems(dataset: DatasetBlock, experiment: Experiment, *, place: Place) -> Iterator[Problem]:
    """Yield what is wrong with the published references of a dataset."""
    comparing = {
        name: metric
        for name, metric in experiment.metrics.items()
        if "real" in plugins.load("metrics", metric.name).inputs
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


def _column_problems(table: TableBlock, experiment: Experiment, *, place: Place) -> Iterator[Problem]:
    numbers = _numbers(experiment)
    for column, source in table.columns.items():
        yield from unknown((*place, "columns", column), source, numbers, of="numbers")
    for source in table.columns.values():
        yield from _few_seeds(table.seeds[0], source, experiment, place=(*place, "seeds", 0))


def _few_seeds(block: str, source: str, experiment: Experiment, *, place: Place) -> Iterator[Problem]:
    """Yield a block of seeds that has fewer of them than the metric of a column needs images."""
    name, images = source.partition(".")[0], len(_seeds(block))
    needed = _least_images(experiment.metrics[name]) if name in experiment.metrics else 0
    if 0 < images < needed:
        few = f"{block} has {images} seeds, expected at least {needed}: so many images metric {name} needs"
        yield Problem(place, few)


def _selection_problems(table: TableBlock, experiment: Experiment, *, place: Place) -> Iterator[Problem]:
    """Yield what is wrong with how a table chooses snapshots."""
    column, block = table.selected_by, table.select_seeds
    if column is None and block is not None:
        useless = f"found the text {block!r}, expected nothing: select: last measures no snapshots to choose among"
        yield Problem((*place, "select_seeds"), useless)
    if column is not None and column not in table.columns:
        choices = ["last", *(f"best_{each}" for each in table.columns)]
        yield Problem((*place, "select"), not_among(table.select, choices, of="policies"))
    elif column is not None and block is not None:
        yield from _few_seeds(block, table.columns[column], experiment, place=(*place, "select_seeds"))
    if block is not None and not _seeds(block):
        yield Problem((*place, "select_seeds"), _backwards(block))


def _numbers(experiment: Experiment) -> list[str]:
    """Return every "metric.value" there is."""
    chosen = {name: plugins.load("metrics", metric.name) for name, metric in experiment.metrics.items()}
    return [f"{name}.{value}" for name, metric in chosen.items() for value in metric.values]


def _least_images(metric: MetricBlock) -> int:
    """Return how many images a metric needs."""
    return plugins.load("metrics", metric.name)(**metric.options).least_images


def _curve_problems(table: TableBlock, *, place: Place) -> Iterator[Problem]:
    if table.curves is not None:
        yield from unknown((*place, "column"), table.curves.column, table.columns, of="columns")
        if not _seeds(table.curves.seeds):
            yield Problem((*place, "seeds"), _backwards(table.curves.seeds))


def _row_problems(row: RowBlock, table: TableBlock, experiment: Experiment, *, place: Place) -> Iterator[Problem]:
    yield from _kind_problems(row, place=place)
    yield from _dataset_problems(row, table, experiment, place=place)
    yield from _ema_problems(row, experiment, place=place)
    yield from unknown((*place, "run"), row.run, denoisers(experiment), of="runs of a denoiser")
    yield from unknown((*place, "teacher"), row.teacher, experiment.teachers, of="teachers")
    yield from unknown((*place, "sampler"), row.sampler, experiment.samplers, of="samplers")
    for column in row.published:
        yield from unknown((*place, "published", column), column, table.columns, of="columns")
    yield from _strangers(row, table, experiment, place=place)


def _kind_problems(row: RowBlock, *, place: Place) -> Iterator[Problem]:
    """Yield what is wrong with what a row is: a run or teacher through a sampler, or published numbers alone."""
    given = [key for key in ("run", "teacher") if getattr(row, key) is not None]
    if row.published and not given:
        yield from _other_method_problems(row, place=place)
        return
    if wrong := exactly_one(("run", "teacher"), given=given):
        hint = "" if given else "; another method's row has `published` instead"
        yield Problem(place, wrong + hint)
    if row.sampler is None:
        yield Problem((*place, "sampler"), missing_key())
    for key in ("nfe", "images"):
        if getattr(row, key) is not None:
            yield Problem((*place, key), "only another method's row has it; what is measured here knows its own")


def _other_method_problems(row: RowBlock, *, place: Place) -> Iterator[Problem]:
    if row.label is None:
        yield Problem((*place, "label"), "missing, but a row without run or teacher has no other name")
    for key in ("sampler", "ema"):
        if getattr(row, key) is not None:
            yield Problem((*place, key), "a row without run or teacher has none, because nothing is measured for it")


def _dataset_problems(row: RowBlock, table: TableBlock, experiment: Experiment, *, place: Place) -> Iterator[Problem]:
    """Yield a row that names no dataset where the table does not, or one where the table does."""
    place = (*place, "dataset")
    yield from unknown(place, row.dataset, experiment.datasets, of="datasets")
    if row.dataset is None and table.dataset is None:
        yield Problem(place, "missing, and the table names none; name one there, or one in each row")
    elif row.dataset is not None and table.dataset is not None:
        yield Problem(place, f"found the text {row.dataset!r}, but the table names {table.dataset}; take one away")


def _ema_problems(row: RowBlock, experiment: Experiment, *, place: Place) -> Iterator[Problem]:
    """Yield an average that the row's run does not keep."""
    run = experiment.runs.get(row.run or "")
    if row.ema is None or (run is None and row.teacher is None):
        return
    kept = [] if run is None else [run.ema.half_life, *run.ema.others]
    if row.ema not in kept:
        known = ", ".join(f"{each:.15g}" for each in kept)
        expected = f"one of the half-lives of {row.run}: {known}" if kept else "none: a teacher has one average"
        yield Problem((*place, "ema"), f"found {row.ema}, expected {expected}")


def _strangers(row: RowBlock, table: TableBlock, experiment: Experiment, *, place: Place) -> Iterator[Problem]:
    """Yield a row whose network learned from another dataset than the one it is compared with.

    A model's numbers are filed under the model alone, so they are of one dataset.
    """
    run, dataset = _learner(row, experiment), row.dataset or table.dataset
    if run is not None and run.dataset != dataset and {run.dataset, dataset} <= experiment.datasets.keys():
        said = "the table" if row.dataset is None else "the row"
        yield Problem(place, f"learned from dataset {run.dataset}, expected {dataset}, as {said} says")


def _learner(row: RowBlock, experiment: Experiment) -> Run | None:
    """Return the run that trained a row's network; None where it came trained."""
    teacher = experiment.teachers.get(row.teacher or "")
    return experiment.runs.get(row.run or (teacher and teacher.run) or "")


def _wanderers(experiment: Experiment) -> Iterator[Problem]:
    """Yield a teacher from outside that is compared with another dataset than before: see `_strangers`."""
    met: dict[str, str] = {}
    for name, table in experiment.tables.items():
        for index, row in enumerate(table.rows):
            dataset = row.dataset or table.dataset
            if row.teacher is None or dataset is None or _learner(row, experiment) is not None:
                continue
            first = met.setdefault(row.teacher, dataset)
            if first != dataset:
                clash = f"{row.teacher} is compared with {dataset} here and with {first} elsewhere"
                yield Problem(("tables", name, "rows", index), f"{clash}; give it a second name in teachers")
