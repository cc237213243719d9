"""Whether runs fit their datasets, teachers and backbones, as far as a config shows before any job.

Shapes are those that the classes of data/ and their options state, and those of EDM's published networks in the
registry. Networks are tried: with torch on its meta device, without weights; without it, the checks before their first
use of torch. What is not known here is compared where the run begins (`onestep.training.sources.check_fit`).
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from onestep import components
from onestep.config.blocks import Origin, networks_of
from onestep.config.freezing import frozen_by
from onestep.config.messages import Place, Problem, got, listed, one_line
from onestep.config.run import Component, Run, to_document
from onestep.config.sections import Experiment
from onestep.config.tables import TableBlock
from onestep.inputs import read_registry

_UNKNOWN_CHANNELS, _UNKNOWN_CLASSES = 3, 10  # for trying a network of a dataset that does not state them


class Shape(NamedTuple):
    """Resolution, channels and number of classes of a dataset or network; None if the config does not state it."""

    resolution: int | None = None  # pixels
    channels: int | None = None
    classes: int | None = None  # 0 for no labels, or an unconditional network

    def differences(self, other: Shape, *, but: tuple[str, ...] = ()) -> list[tuple[str, int, int]]:
        """Return what differs as (name, own value, other value), where both are known."""
        pairs = zip(self._fields, self, other, strict=True)
        return [(key, a, b) for key, a, b in pairs if key not in but and a is not None and b is not None and a != b]


def shape_of(experiment: Experiment, dataset: str) -> Shape:
    """Return the shape of a dataset's images, of what its class and its options state."""
    block = experiment.datasets[dataset]
    known = {**components.describe("data", block.name).constants, **block.options}
    if known.get("labels") == "none":
        known["classes"] = 0
    if block.classes is not None:
        known["classes"] = block.classes
    return Shape(**{key: known[key] for key in Shape._fields if type(known.get(key)) is int})


def fit_problems(experiment: Experiment, *, objectives: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield mismatches of runs with datasets, teachers and backbones; an objective is None without torch."""
    shapes = {name: shape_of(experiment, name) for name in experiment.datasets}
    tries = _Tries()
    yield from _class_problems(experiment)
    for name, run in experiment.runs.items():
        if run.dataset not in shapes:
            continue
        place, shape, objective = ("runs", name), shapes[run.dataset], objectives.get(name)
        if run.conditional and shape.classes == 0:
            none = f"got true, and the images of datasets.{run.dataset} have no labels"
            yield Problem((*place, "conditional"), f"{none}. Fix: false, or a dataset with labels")
        for key, found, expected in _teacher_differences(run, experiment, shapes=shapes):
            if key != "conditional":
                yield Problem((*place, "teacher"), f"got {key} {found}, expected {expected}")
        yield from _backbone_problems(run, experiment, shapes=shapes, place=place)
        if objective is not None and shape.resolution is not None and hasattr(objective, "check_resolution"):
            try:
                objective.check_resolution(shape.resolution)
            except ValueError as error:
                yield Problem((*place, "objective"), f"{one_line(error)}, of datasets.{run.dataset}")
        yield from _discriminator_problems(
            run, processes=experiment.launch.of(name).processes, shape=shape, tries=tries, place=place
        )
        yield from _network_problems(run, declared=networks_of(objective), shape=shape, tries=tries, place=place)
        yield from _freeze_problems(run, experiment, shapes=shapes, tries=tries, place=(*place, "freeze"))
    for name, table in experiment.tables.items():
        yield from _extractor_problems(table, experiment, shapes=shapes, place=("tables", name, "columns"))


def _class_problems(experiment: Experiment) -> Iterator[Problem]:
    """Yield numbers of classes that are fewer than a dataset states, or given without labels."""
    for name, dataset in experiment.datasets.items():
        stated = components.describe("data", dataset.name).constants.get("classes", 0)
        if dataset.classes is not None and (dataset.options.get("labels") == "none" or dataset.classes < stated):
            expected = f"at least {stated}, those of {dataset.name}" if stated else "none without labels"
            yield Problem(("datasets", name, "classes"), f"got {dataset.classes}, expected {expected}")


def teacher_problems(experiment: Experiment) -> Iterator[Problem]:
    """Yield teachers with a condition for runs without one, and the reverse.

    Only the plan asks: a run alone may be resolved for another teacher's file, which is compared as it begins to train.
    """
    shapes = {name: shape_of(experiment, name) for name in experiment.datasets}
    for name, run in experiment.runs.items():
        for key, found, expected in _teacher_differences(run, experiment, shapes=shapes):
            if key == "conditional":
                yield Problem(("runs", name, "teacher"), f"got a teacher of conditional: {found}, expected {expected}")


class _Tries:
    """Networks that were built for their errors and the names of their parameters, each once."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Any, str | None]] = {}

    def network(self, block: Any, *, conditional: bool, shape: Shape) -> tuple[Any, str | None]:
        """Try a block of networks/ on images of a shape: see `of`."""
        if shape.resolution is None:
            return None, None
        classes = (shape.classes or _UNKNOWN_CLASSES) if conditional else 0
        supplied = {"img_channels": shape.channels or _UNKNOWN_CHANNELS, "label_dim": classes}
        return self.of("networks", block, img_resolution=shape.resolution, **supplied)

    def of(self, family: str, block: Any, **supplied: int) -> tuple[Any, str | None]:
        """Return (network, error): the network is None if it cannot be built here, the error None if it is valid."""
        document = {"name": block.name, **to_document(block.options)}
        key = repr((family, document, supplied))
        if not components.builds_networks():
            return None, None
        if key not in self._known:
            try:
                with components.computing_shown():
                    components.outline(family, block.name)  # imports torch, if there is any
                    with _on_meta_device():
                        self._known[key] = components.build_outline(family, {**document, **supplied}), None
            except ValueError as error:
                self._known[key] = None, one_line(error)
            except Exception:  # of a class from outside, which needs its weights or a real device
                self._known[key] = None, None
        return self._known[key]


def _on_meta_device() -> contextlib.AbstractContextManager[Any]:
    torch = sys.modules.get("torch")
    return contextlib.nullcontext() if torch is None else torch.device("meta")


def _teacher_differences(
    run: Run, experiment: Experiment, *, shapes: Mapping[str, Shape]
) -> Iterator[tuple[str, str, str]]:
    """Yield (key, the teacher's value and its place, the value of the run or of its dataset)."""
    teacher = experiment.teachers.get(run.teacher or "")
    if teacher is None:
        return
    trained, source = experiment.runs.get(teacher.run or ""), experiment.inputs.get(teacher.input or "")
    if trained is not None and trained.dataset in shapes:
        where, conditional, facts = f"runs.{teacher.run}", trained.conditional, shapes[trained.dataset]
    elif source is not None and source.published is not None and source.published in read_registry():
        network = read_registry()[source.published].network
        where, facts = f"inputs.{teacher.input}", Shape(**network) if network else Shape()
        conditional = bool(facts.classes) if network else run.conditional
    else:
        return
    if conditional != run.conditional:
        yield "conditional", f"{str(conditional).lower()} ({where})", str(run.conditional).lower()
    own = shapes[run.dataset]
    for key, teachers, datasets in facts.differences(own, but=() if run.conditional and conditional else ("classes",)):
        yield key, f"{teachers} ({where})", f"{datasets}, that of datasets.{run.dataset}"


def _backbone_problems(
    run: Run, experiment: Experiment, *, shapes: Mapping[str, Shape], place: Place
) -> Iterator[Problem]:
    """Yield classifiers of colours as backbones for other channels; grey images become those of any backbone."""
    own = shapes[run.dataset].channels
    for index, name in enumerate(run.discriminator.backbones if run.discriminator else ()):
        backbone = experiment.backbones.get(name)
        trained = experiment.runs.get((backbone and backbone.run) or "")
        channels = shapes[trained.dataset].channels if trained is not None and trained.dataset in shapes else None
        if None not in (own, channels) and own not in (1, channels):
            here = (*place, "discriminator", "backbones", index)
            assert trained is not None
            found = f"{channels} channels (datasets.{trained.dataset})"
            yield Problem(here, f"{name} takes {found}, expected {own}, those of datasets.{run.dataset}")


def _discriminator_problems(
    run: Run, *, processes: int, shape: Shape, tries: _Tries, place: Place
) -> Iterator[Problem]:
    """Yield discriminators without classes for classes, and those that refuse the images' size or number."""
    block = run.discriminator
    if block is None:
        return
    here, taken = (*place, "discriminator"), components.describe("discriminators", block.name).parameters
    if run.conditional and "classes" not in taken:
        without = f"{got(block.name)}, which has no classes, in a run with conditional: true"
        yield Problem((*here, "name"), f"{without}. Fix: conditional: false, or another discriminator")
    if block.class_embeddings is not None and "embedding" not in taken:
        none = f"{got(block.class_embeddings)}, expected none: {block.name} begins with random classes"
        yield Problem((*here, "class_embeddings"), f"{none}. Fix: remove it")
    outline = components.outline("discriminators", block.name)
    sizes, of = getattr(outline, "image_sizes", None), f"datasets.{run.dataset}: resolution {shape.resolution}"
    if sizes is not None and shape.resolution is not None and shape.resolution not in sizes:
        yield Problem(here, f"{block.name} takes images of {listed(map(str, sizes))} pixels ({of})")
    if sizes is None and "backbones" not in taken and shape.resolution is not None:
        classes = (shape.classes or _UNKNOWN_CLASSES) if run.conditional else 0
        supplied = {"img_resolution": shape.resolution, "img_channels": shape.channels or _UNKNOWN_CHANNELS}
        supplied |= {"classes": classes, "seed": run.seed, "rank": 0}
        only = {key: value for key, value in supplied.items() if key in taken}
        _, refused = tries.of("discriminators", Component(name=block.name, options=block.options), **only)
        if refused is not None:
            yield Problem(here, f"{refused} ({of})")
    share, group = run.batch // processes, block.options.get(getattr(outline, "grouped_by", ""), 1)
    parts = 1 if run.micro_batch is None else -(-share // run.micro_batch)
    # As `micro_batches` of training/step.py divides a share.
    rows = next((each for each in (share // parts, -(-share // parts)) if each > group and each % group), None)
    if rows is not None:
        found = f"got {rows} images at once ({run.batch} in {processes * parts} parts, of processes and micro-batches)"
        yield Problem((*here, outline.grouped_by), f"{found}, expected a multiple of {group}, or fewer")


def _network_problems(
    run: Run, *, declared: Mapping[str, Origin], shape: Shape, tries: _Tries, place: Place
) -> Iterator[Problem]:
    """Yield networks from scratch that refuse their options or the dataset's shape."""
    tried: list[tuple[Place, str, Any]] = []
    if run.network is not None:
        tried.append(((*place, "network"), "networks", run.network))
    if run.classifier is not None:
        tried.append(((*place, "classifier"), "classifiers", run.classifier))
    for role, block in run.networks.items():
        tried.append(((*place, "networks", role), declared[role].family or "" if role in declared else "", block))
    for here, family, block in tried:
        refused = None
        if family == "networks":
            inner = {key: each for key, each in block.options.items() if key != "preconditioning"}
            _, refused = tries.network(
                Component(name=block.name, options=inner), conditional=run.conditional, shape=shape
            )
        elif family == "classifiers" and shape.resolution is not None:
            channels, classes = shape.channels or _UNKNOWN_CHANNELS, shape.classes or _UNKNOWN_CLASSES
            _, refused = tries.of(family, block, resolution=shape.resolution, channels=channels, classes=classes)
        if refused is not None:
            yield Problem(here, f"{refused} (datasets.{run.dataset}: resolution {shape.resolution})")


def _freeze_problems(
    run: Run, experiment: Experiment, *, shapes: Mapping[str, Shape], tries: _Tries, place: Place
) -> Iterator[Problem]:
    """Yield levels that freeze nothing, and a network of which nothing is left to train."""
    teacher = experiment.teachers.get(run.teacher or "")
    trained = run if run.teacher is None else experiment.runs.get((teacher and teacher.run) or "")
    block = None if trained is None else trained.network
    if trained is None or block is None or trained.dataset not in shapes:
        classes = [components.outline("networks", name) for name in components.choices("networks")]
        network, names = None, []
    else:
        classes = [components.outline("networks", block.name)]
        network, _ = tries.network(block, conditional=trained.conditional, shape=shapes[trained.dataset])
        parameters = network.named_parameters() if hasattr(network, "named_parameters") else ()
        names = [f"model.{name}" for name, _ in parameters]
    levels = {level: patterns for each in classes for level, patterns in getattr(each, "freeze_levels", {}).items()}
    frozen: set[str] = set()
    for index, level in enumerate(run.freeze):
        found = frozen_by(level, names, levels=levels)
        # Every parameter's name has a dot.
        if (names and not found) or not (level in levels or any(each in level for each in ".*?[")):
            expected = f"one of the levels {listed(levels)}, or a pattern of its parameters' names"
            yield Problem((*place, index), f"{got(level)}, which is none of the network, expected {expected}")
        frozen.update(found)
    if run.freeze_seed is not None and not run.freeze:
        alone = f"got {run.freeze_seed} without `freeze`. Fix: remove it, or list the levels whose size it takes"
        yield Problem((*place[:-1], "freeze_seed"), alone)
    if names and len(frozen) == len(names):
        yield Problem(place, "freezes the whole network, expected some of it to be trained")


def _extractor_problems(
    table: TableBlock, experiment: Experiment, *, shapes: Mapping[str, Shape], place: Place
) -> Iterator[Problem]:
    """Yield columns whose features are those of a classifier of other images than the table's."""
    datasets = dict.fromkeys(each for row in table.rows if (each := row.dataset or table.dataset) in shapes)
    for column, source in table.columns.items():
        metric = experiment.metrics.get(source.partition(".")[0])
        features = experiment.features.get((metric and metric.features) or "")
        trained = experiment.runs.get((features and features.run) or "")
        if trained is None or trained.dataset not in shapes:
            continue
        for dataset in datasets:
            assert dataset is not None
            for key, own, other in shapes[trained.dataset].differences(shapes[dataset], but=("classes",)):
                found = f"features of a classifier for {key} {own} (datasets.{trained.dataset})"
                yield Problem((*place, column), f"got {found}, expected {other}, that of datasets.{dataset}")
