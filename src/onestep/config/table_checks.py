"""Consistency of a config from trained networks on: metrics, tables and their rows, studies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from onestep import components
from onestep.config.constraints import seeds_of
from onestep.config.latent_checks import pixels_of
from onestep.config.messages import MISSING, Place, Problem, exactly_one, got, listed, not_among, unknown
from onestep.config.run import Run
from onestep.config.run_checks import denoisers, network_of
from onestep.config.sections import DatasetBlock, Experiment
from onestep.config.tables import RowBlock, TableBlock

_SEEDS = 2**32  # beyond, seeds are those from 0 on again
_BLOCK = 10_000_000


def table_problems(experiment: Experiment, *, metrics: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield the problems of metrics and tables.

    A metric is None if it cannot be built without torch; then its minimum number of images is not checked.
    """
    for name, metric in experiment.metrics.items():
        yield from unknown(("metrics", name, "features"), metric.features, experiment.features, of="features")
        for index, network in enumerate(metric.networks):
            yield from unknown(("metrics", name, "networks", index), network, experiment.features, of="features")
        yield from unknown(("metrics", name, "held_out"), metric.held_out, experiment.datasets, of="datasets")
    for name, dataset in experiment.datasets.items():
        yield from _reference_problems(dataset, experiment, place=("datasets", name, "references"))
    for name, table in experiment.tables.items():
        place = ("tables", name)
        yield from unknown((*place, "dataset"), table.dataset, experiment.datasets, of="datasets")
        yield from _seed_problems(table.seeds, place=(*place, "seeds"))
        yield from _column_problems(table, experiment, metrics=metrics, place=place)
        yield from _selection_problems(table, metrics=metrics, place=place)
        if table.curves is not None:
            yield from unknown((*place, "curves", "column"), table.curves.column, table.columns, of="columns")
            here = (*place, "curves", "seeds")
            yield from backwards(table.curves.seeds, place=here)
            if (source := table.columns.get(table.curves.column)) is not None:
                yield from few_seeds(table.curves.seeds, source, metrics, place=here)
        for index, row in enumerate(table.rows):
            yield from _row_problems(row, table, experiment, place=(*place, "rows", index))
        yield from _rule_problems(table, place=(*place, "rule"))
    yield from _teachers_of_two_datasets(experiment)
    yield from _watch_problems(experiment, metrics=metrics)


def _watch_problems(experiment: Experiment, *, metrics: Mapping[str, Any]) -> Iterator[Problem]:
    for name, images in experiment.watch.numbers.items():
        place = ("watch", "numbers", name)
        metric, built = experiment.metrics.get(name), metrics.get(name)
        if metric is None:
            yield from unknown(place, name, experiment.metrics, of="metrics")
        elif metric.features is None or {"pixels", "real_pixels"} & set(getattr(built, "inputs", ())):
            what = "a metric of pixels or of several networks, expected one of features"
            yield Problem(place, f"{what}. Fix: remove it, or choose another one")
        elif metric.against is not None:
            yield Problem(place, "compares with generated images, expected one with real ones. Fix: choose another one")
        elif images > _BLOCK:
            yield Problem(place, f"got {images}, expected at most {_BLOCK} images")
        elif images < (least := getattr(built, "least_images", 1)):
            yield Problem(place, f"got {images}, expected at least {least} images for this metric")


def study_problems(experiment: Experiment, *, studies: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield names in what a study observes that are not in the config; a study is None without torch to build it."""
    known: Mapping[str, tuple[Iterable[str], str]] = {
        "run": (denoisers(experiment), "runs of a denoiser"),
        "model": ([*experiment.teachers, *denoisers(experiment)], "teachers and runs of a denoiser"),
        "sampler": (experiment.samplers, "samplers"),
        "metric": (experiment.metrics, "metrics"),
        "features": (experiment.features, "features"),
        "dataset": (experiment.datasets, "datasets"),
    }
    for name, study in studies.items():
        observed = () if study is None else study.observes().values()
        for each in observed:
            for key, (choices, plural) in known.items():
                value = getattr(each, key, None)
                named = value.partition("@")[0] if key == "model" and value is not None else value
                yield from unknown(("studies", name), named, choices, of=plural)
            yield from _snapshot_problems(getattr(each, "model", None), experiment, place=("studies", name))
            yield from _role_problems(each, experiment, place=("studies", name))
            kind = network_of(each.model.partition("@")[0], experiment) if getattr(each, "blocks", False) else None
            if kind is not None and not getattr(components.outline("networks", kind), "block_layers", None):
                fix = "Fix: add `block_layers` to its file (docs/extend.md), or leave it out"
                yield Problem(("studies", name), f"got {each.model}, whose network {kind} names no blocks. {fix}")
        # Networks of one role are repeated trainings.
        roles = [each.run for each in observed if hasattr(each, "role")]
        yield from _arm_problems({"runs": roles}, experiment, place=("studies", name))
    for name, block in experiment.studies.items():
        arms = block.options.get("arms")
        yield from _arm_problems(arms, experiment, place=("studies", name, "arms")) if isinstance(arms, Mapping) else ()


def _snapshot_problems(model: str | None, experiment: Experiment, *, place: Place) -> Iterator[Problem]:
    """Yield a model `run@images` of which the run has no snapshot."""
    run, _, images = (model or "").partition("@")
    if images.isdecimal() and run in experiment.runs and int(images) not in experiment.runs[run].snapshots:
        known = listed(map(str, experiment.runs[run].snapshots))
        fix = f"Fix: add {images} to runs.{run}.snapshots"
        yield Problem(place, f"got {model}, expected one of the snapshots of {run}: {known}. {fix}")


def _role_problems(observable: Any, experiment: Experiment, *, place: Place) -> Iterator[Problem]:
    """Yield a role of a run whose weights its objective does not publish."""
    run, role = getattr(observable, "run", None), getattr(observable, "role", None)
    if role is None or run is None or run not in experiment.runs:
        return
    objective = experiment.runs[run].objective.name
    published = getattr(components.outline("objectives", objective), "also_publishes", ())
    if role not in published:
        found = f"got {run}, whose objective {objective} does not publish its {role}"
        known = f", only its {listed(published)}" if published else ""
        yield Problem(place, f"{found}{known}, expected a run that does. Fix: choose a run of such an objective")


def _arm_problems(arms: Mapping[str, Any], experiment: Experiment, *, place: Place) -> Iterator[Problem]:
    """Yield runs of an arm that repeat a training seed: their spread is not that over trainings."""
    for label, runs in arms.items():
        seeds: dict[int, str] = {}
        for name in (name for name in runs if name in experiment.runs):
            first = seeds.setdefault(experiment.runs[name].seed, name)
            if first != name:
                seed = f"seed {experiment.runs[name].seed}, that of {first}"
                yield Problem((*place, label), f"got {name} of {seed}, expected a training seed of its own")


def _reference_problems(dataset: DatasetBlock, experiment: Experiment, *, place: Place) -> Iterator[Problem]:
    metrics = experiment.metrics.items()
    real = {name for name, each in metrics if "real" in components.outline("metrics", each.name).inputs}
    comparing = [name for name, each in metrics if name in real and each.against is None]
    for metric, source in dataset.references.items():
        yield from unknown((*place, metric), metric, comparing, of="metrics that compare with real images")
        yield from unknown((*place, metric), source, experiment.inputs, of="inputs")


def _seed_problems(texts: Sequence[str], *, place: Place) -> Iterator[Problem]:
    blocks = [seeds_of(text) for text in texts]
    for index, (text, block) in enumerate(zip(texts, blocks, strict=True)):
        here = (*place, index)
        before = zip(texts[:index], blocks, strict=False)
        common = [each for each, b in before if max(b.start, block.start) < min(b.stop, block.stop)]
        if not block:
            yield from backwards(text, place=here)
        elif common:
            yield Problem(here, f"{text} overlaps {common[0]}, expected independent samples")
        elif blocks[0] and len(block) != len(blocks[0]):
            yield Problem(here, f"{text} has {len(block)} seeds, expected {len(blocks[0])} as in {texts[0]}")
        else:
            yield from backwards(text, place=here)


def backwards(text: str | None, *, place: Place) -> Iterator[Problem]:
    """Yield a block of seeds without any, or that is too large."""
    if text is None:
        return
    if not (block := seeds_of(text)):
        yield Problem(place, f"{got(text)}, expected first-last, the first not above the last")
    elif block.stop > _SEEDS or len(block) > _BLOCK:
        yield Problem(place, f"{got(text)}, expected seeds below {_SEEDS}, and at most {_BLOCK} in a block")


def _column_problems(
    table: TableBlock, experiment: Experiment, *, metrics: Mapping[str, Any], place: Place
) -> Iterator[Problem]:
    outlines = {name: components.outline("metrics", each.name) for name, each in experiment.metrics.items()}
    numbers = [f"{name}.{value}" for name, outline in outlines.items() for value in outline.values]
    for column, source in table.columns.items():
        yield from unknown((*place, "columns", column), source, numbers, of="numbers")
        yield from few_seeds(table.seeds[0], source, metrics, place=(*place, "seeds", 0))
        yield from _held_out_problems(source.partition(".")[0], table, experiment, place=(*place, "columns", column))


def _held_out_problems(metric: str, table: TableBlock, experiment: Experiment, *, place: Place) -> Iterator[Problem]:
    """Yield a metric whose held-out images are among those of a row's dataset."""
    block = experiment.metrics.get(metric)
    held_out = None if block is None else block.held_out
    if held_out is None:
        return
    whole = experiment.datasets[held_out].dataset if held_out in experiment.datasets else None
    for dataset in dict.fromkeys(row.dataset or table.dataset for row in table.rows):
        if dataset in (held_out, whole) and dataset is not None:
            found = f"got metrics.{metric}.held_out {held_out}, whose images are in datasets.{dataset}"
            yield Problem(place, f"{found}, expected images that it lacks. Fix: train and compare with another part")


def few_seeds(block: str, source: str, metrics: Mapping[str, Any], *, place: Place) -> Iterator[Problem]:
    """Yield a block of seeds that has fewer images than the metric of `source`, a name or `metric.value`, needs."""
    name, images = source.partition(".")[0], len(seeds_of(block))
    least = getattr(metrics.get(name), "least_images", 1)
    if 0 < images < least:
        yield Problem(place, f"{block} has {images} seeds, expected at least {least}, which metric {name} needs")


def _selection_problems(table: TableBlock, *, metrics: Mapping[str, Any], place: Place) -> Iterator[Problem]:
    column, block = table.selected_by, table.select_seeds
    if column is None and block is not None:
        yield Problem((*place, "select_seeds"), f"{got(block)}, expected none with `select: last`. Fix: remove it")
    if column is not None and column not in table.columns:
        choices = ["last", *(f"best_{each}" for each in table.columns)]
        yield Problem((*place, "select"), not_among(table.select, choices, of="policies"))
    elif column is not None and block is not None:
        yield from few_seeds(block, table.columns[column], metrics, place=(*place, "select_seeds"))
    yield from backwards(block, place=(*place, "select_seeds"))


def _rule_problems(table: TableBlock, *, place: Place) -> Iterator[Problem]:
    if (rule := table.rule) is None:
        return
    rows = [name for row in table.rows if (name := row.name) is not None]
    yield from unknown((*place, "row"), rule.row, rows, of="rows with a sampler")
    yield from unknown((*place, "times"), rule.times, rows, of="rows with a sampler")
    yield from unknown((*place, "column"), rule.column, table.columns, of="columns")
    if wrong := exactly_one(vars(rule), "at_most", "at_least"):
        yield Problem(place, wrong)


def _row_problems(row: RowBlock, table: TableBlock, experiment: Experiment, *, place: Place) -> Iterator[Problem]:
    yield from _kind_problems(row, place=place)
    yield from _dataset_problems(row, table, experiment, place=place)
    yield from _ema_problems(row, experiment, place=place)
    for run in row.members:
        yield from unknown((*place, "run"), run, denoisers(experiment), of="runs of a denoiser")
    yield from unknown((*place, "teacher"), row.teacher, experiment.teachers, of="teachers")
    yield from unknown((*place, "sampler"), row.sampler, experiment.samplers, of="samplers")
    for column in row.published:
        yield from unknown((*place, "published", column), column, table.columns, of="columns")
    yield from _other_dataset_problems(row, table, experiment, place=place)


def _kind_problems(row: RowBlock, *, place: Place) -> Iterator[Problem]:
    """Yield the problems of a row's kind: a run or teacher with a sampler, or published numbers alone."""
    if row.runs and row.run is None:
        yield Problem((*place, "run"), "missing beside `runs`: it names the row")
    published_alone = bool(row.published) and not row.is_measured
    if published_alone and row.label is None:
        yield Problem((*place, "label"), "missing: a row without run or teacher has no other name")
    if not published_alone and (wrong := exactly_one(vars(row), "run", "teacher")):
        yield Problem(place, wrong + ("" if row.is_measured else ", or `published` for another method"))
    if not published_alone and row.sampler is None:
        yield Problem((*place, "sampler"), MISSING)
    where = "row without run or teacher" if published_alone else "measured row"
    for key in ("sampler", "ema") if published_alone else ("nfe", "images"):
        if getattr(row, key) is not None:
            yield Problem((*place, key), f"{got(getattr(row, key))} in a {where}. Fix: remove it")


def _dataset_problems(row: RowBlock, table: TableBlock, experiment: Experiment, *, place: Place) -> Iterator[Problem]:
    place = (*place, "dataset")
    yield from unknown(place, row.dataset, experiment.datasets, of="datasets")
    if row.dataset is None and table.dataset is None:
        yield Problem(place, "missing here and in the table. Fix: set it in the table, or in each row")
    elif row.dataset is not None and table.dataset is not None:
        yield Problem(place, f"{got(row.dataset)}, and the table has {table.dataset}. Fix: remove one")


def _ema_problems(row: RowBlock, experiment: Experiment, *, place: Place) -> Iterator[Problem]:
    if row.ema is None:
        return
    if row.teacher is not None:
        yield Problem((*place, "ema"), f"got {row.ema}, expected none: a teacher has one EMA")
    for name in (name for name in row.members if name in experiment.runs):
        ema = experiment.runs[name].ema
        kept = [ema.half_life, *ema.others]
        if row.ema not in kept and not (isinstance(row.ema, float) and ema.power):
            known = ", ".join(f"{each:.15g}" for each in kept)
            known += ", or a relative standard deviation below 1" if ema.power else ""
            yield Problem((*place, "ema"), f"got {row.ema}, expected a half-life of {name}: {known}")


def _other_dataset_problems(
    row: RowBlock, table: TableBlock, experiment: Experiment, *, place: Place
) -> Iterator[Problem]:
    """Yield a row whose network was trained on another dataset than the one it is compared with.

    Files of a model's numbers are named by the model alone, so they belong to one dataset.
    """
    dataset = row.dataset or table.dataset
    for run in _trained_by(row, experiment):
        pixels = pixels_of(experiment, run.dataset)
        if pixels not in (None, dataset) and {run.dataset, dataset} <= experiment.datasets.keys():
            holder = "the table" if row.dataset is None else "the row"
            yield Problem(place, f"trained on dataset {run.dataset}, expected {dataset}, the dataset of {holder}")


def _trained_by(row: RowBlock, experiment: Experiment) -> list[Run]:
    """Return the runs that trained a row's networks; none for a network from outside."""
    teacher = experiment.teachers.get(row.teacher or "")
    names = row.members or ((teacher.run,) if teacher and teacher.run else ())
    return [experiment.runs[name] for name in names if name in experiment.runs]


def _teachers_of_two_datasets(experiment: Experiment) -> Iterator[Problem]:
    """Yield a teacher from outside that is compared with a second dataset; see `_other_dataset_problems`."""
    met: dict[str, str] = {}
    for name, table in experiment.tables.items():
        for index, row in enumerate(table.rows):
            dataset = row.dataset or table.dataset
            if row.teacher is None or dataset is None or _trained_by(row, experiment):
                continue
            first = met.setdefault(row.teacher, dataset)
            if first != dataset:
                clash = f"{row.teacher} is compared with {dataset} here and with {first} elsewhere"
                yield Problem(("tables", name, "rows", index), f"{clash}. Fix: give it a second name in teachers")
