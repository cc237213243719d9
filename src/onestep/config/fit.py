"""Whether runs fit their datasets, teachers and backbones, as far as a config shows before any job.

Shapes are those that the classes of data/ and their options state, and those of EDM's published networks in the
registry. Networks are tried: with torch on its meta device, without weights; without it, the checks before their first
use of torch. What is not known here is compared where the run begins (`onestep.training.sources.check_fit`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from onestep import components
from onestep.config.blocks import Origin, networks_of
from onestep.config.freezing import frozen_by
from onestep.config.known import (
    Shape,
    Tries,
    shape_of,
    teacher_differences,
    trained_with,
)
from onestep.config.laws import (
    STATE_DICT_LAWS,
    is_folder,
    is_state_dict,
    laws_like,
    published_law,
    teacher_law,
)
from onestep.config.messages import Place, Problem, got, listed, one_line
from onestep.config.run import Component, Run, to_document
from onestep.config.sections import Experiment, TeacherBlock
from onestep.config.start_checks import init_problems, pairs_problems
from onestep.config.tables import TableBlock


def fit_problems(experiment: Experiment, *, objectives: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield mismatches of runs with datasets, teachers and backbones; an objective is None without torch."""
    shapes = {name: shape_of(experiment, name) for name in experiment.datasets}
    tries = Tries()
    yield from _class_problems(experiment)
    yield from _law_problems(experiment)
    yield from _no_class_problems(experiment)
    for name, run in experiment.runs.items():
        if run.dataset not in shapes:
            continue
        place, shape, objective = ("runs", name), shapes[run.dataset], objectives.get(name)
        if run.conditional and shape.classes == 0:
            none = f"got true, and the images of datasets.{run.dataset} have no labels"
            yield Problem((*place, "conditional"), f"{none}. Fix: false, or a dataset with labels")
        for key, found, expected in teacher_differences(run, experiment, shapes=shapes):
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
        declared = networks_of(objective)
        yield from _map_problems(run, experiment, declared=declared, shapes=shapes, tries=tries, place=place)
        yield from _network_problems(run, declared=declared, shape=shape, tries=tries, place=place)
        yield from _ratio_problems(run, experiment, declared=declared, shapes=shapes, tries=tries, place=place)
        yield from _freeze_problems(run, experiment, shapes=shapes, tries=tries, place=(*place, "freeze"))
        yield from init_problems(run, experiment, declared=declared, shapes=shapes, tries=tries, place=(*place, "init"))
        yield from pairs_problems(run, experiment, shapes=shapes, place=(*place, "pairs", "teacher"))
    for name, table in experiment.tables.items():
        yield from _extractor_problems(table, experiment, shapes=shapes, place=("tables", name, "columns"))


def _class_problems(experiment: Experiment) -> Iterator[Problem]:
    """Yield numbers of classes that are fewer than a dataset states, or given without labels."""
    for name, dataset in experiment.datasets.items():
        stated = components.describe("data", dataset.name).constants.get("classes", 0)
        if dataset.classes is not None and (dataset.options.get("labels") == "none" or dataset.classes < stated):
            expected = f"at least {stated}, those of {dataset.name}" if stated else "none without labels"
            yield Problem(("datasets", name, "classes"), f"got {dataset.classes}, expected {expected}")


def _law_problems(experiment: Experiment) -> Iterator[Problem]:
    """Yield laws that do not suit the network of a teacher's file, or of a run's teacher."""
    for name, teacher in experiment.teachers.items():
        source = experiment.inputs.get(teacher.input or "")
        if source is not None and str(source.file or source.url).endswith(".safetensors"):
            continue  # compared with the file's own as it is converted
        if teacher.run is None:
            yield from _law_problems_of_file(teacher, experiment, place=("teachers", name, "preconditioning"))
    for name, run in experiment.runs.items():
        law = None if run.teacher is None else teacher_law(experiment, run.teacher)
        if law is not None and run.preconditioning not in (None, *laws_like(law)):
            expected = f"expected {' or '.join(laws_like(law))}, that of teachers.{run.teacher}"
            yield Problem(("runs", name, "preconditioning"), f"{got(run.preconditioning)}, {expected}")


def _law_problems_of_file(teacher: TeacherBlock, experiment: Experiment, *, place: Place) -> Iterator[Problem]:
    """Yield laws that do not suit weights from outside, by the kind of their file or by the registry."""
    stated, published = teacher.preconditioning, published_law(experiment, teacher)
    if is_state_dict(experiment, teacher) and published is None:
        if stated not in STATE_DICT_LAWS:
            found = "got none" if stated is None else got(stated)
            expected = "ddpm for one of DiT or flow for one of SiT, as a state dict does not show it"
            yield Problem(place, f"{found}, expected {expected}. Fix: add preconditioning: flow, or ddpm")
        return
    laws: tuple[str, ...] = ("edm", "d2o")
    of = "a pickle"
    if published is not None or is_folder(experiment, teacher):
        laws, of = (published or "ddpm",), "this checkpoint" if published else "a folder of diffusers"
    if stated not in (None, *laws):
        yield Problem(place, f"{got(stated)}, expected {' or '.join(laws)}, for {of}. Fix: remove it")


def _no_class_problems(experiment: Experiment) -> Iterator[Problem]:
    """Yield teachers `without_classes` whose weights cannot be those of a DiT or SiT; others show it at conversion."""
    for name, teacher in experiment.teachers.items():
        source = experiment.inputs.get(teacher.input or "")
        is_snapshot = source is not None and str(source.file or source.url).endswith(".safetensors")
        if teacher.without_classes and not (
            is_snapshot or is_state_dict(experiment, teacher) or is_folder(experiment, teacher)
        ):
            of = f"runs.{teacher.run}" if teacher.run is not None else f"inputs.{teacher.input}"
            found = f"got true for {of}, expected a file or folder of a DiT or SiT. Fix: remove without_classes"
            yield Problem(("teachers", name, "without_classes"), found)


def teacher_problems(experiment: Experiment) -> Iterator[Problem]:
    """Yield teachers with a condition for runs without one, and the reverse.

    Only the plan asks: a run alone may be resolved for another teacher's file, which is compared as it begins to train.
    """
    shapes = {name: shape_of(experiment, name) for name in experiment.datasets}
    for name, run in experiment.runs.items():
        for key, found, expected in teacher_differences(run, experiment, shapes=shapes):
            if key == "conditional":
                yield Problem(("runs", name, "teacher"), f"got a teacher of conditional: {found}, expected {expected}")


def _backbone_problems(
    run: Run, experiment: Experiment, *, shapes: Mapping[str, Shape], place: Place
) -> Iterator[Problem]:
    """Yield classifiers of colours as backbones for other channels; grey images become those of any backbone."""
    own = shapes[run.dataset].channels if run.codec is None else None  # of pictures, which only the codec's file states
    for index, name in enumerate(run.discriminator.backbones if run.discriminator else ()):
        backbone = experiment.backbones.get(name)
        trained = experiment.runs.get((backbone and backbone.run) or "")
        channels = shapes[trained.dataset].channels if trained is not None and trained.dataset in shapes else None
        if None not in (own, channels) and own not in (1, channels):
            here = (*place, "discriminator", "backbones", index)
            assert trained is not None
            found = f"{channels} channels (datasets.{trained.dataset})"
            yield Problem(here, f"{name} takes {found}, expected {own}, those of datasets.{run.dataset}")


def _discriminator_problems(run: Run, *, processes: int, shape: Shape, tries: Tries, place: Place) -> Iterator[Problem]:
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
    if sizes is None and not taken.keys() & {"backbones", "map_shapes"} and shape.resolution is not None:
        supplied = shape.of_network(conditional=run.conditional)
        supplied |= {"classes": supplied.pop("label_dim"), "seed": run.seed, "rank": 0}
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


def _map_problems(
    run: Run,
    experiment: Experiment,
    *,
    declared: Mapping[str, Origin],
    shapes: Mapping[str, Shape],
    tries: Tries,
    place: Place,
) -> Iterator[Problem]:
    """Yield discriminators on inner maps of a teacher that is not there or has none, and others in their place."""
    block, origin = run.discriminator, declared.get("discriminator")
    if block is None:
        return
    here = (*place, "discriminator")
    if "map_shapes" not in components.describe("discriminators", block.name).parameters:
        if origin is not None and origin.maps_of is not None:
            of = f"on inner maps of the {origin.maps_of}, such as teacher_features"
            yield Problem((*here, "name"), f"{got(block.name)}, expected one {of}, for objective {run.objective.name}")
        return
    if run.teacher is None:
        yield Problem((*here, "name"), f"{got(block.name)}, and the run has no teacher. Fix: name one")
        return
    network, _ = tries.generator(trained_with(run, experiment), shapes=shapes)
    if network is None or not hasattr(network, "named_parameters"):
        return
    maps = getattr(network, "map_shapes", None)
    if maps is None:
        without = f"{got(block.name)}, and its teacher, {type(network).__name__}, has no inner maps"
        yield Problem((*here, "name"), without)
        return
    own = {"map_shapes": maps, "img_channels": shapes[run.dataset].channels or 1, "seed": run.seed}
    _, refused = tries.of("discriminators", Component(name=block.name, options=block.options), **own)
    if refused is not None:
        yield Problem(here, f"{refused}, those of the teacher of runs.{place[-1]}")


def _network_problems(
    run: Run, *, declared: Mapping[str, Origin], shape: Shape, tries: Tries, place: Place
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
            options = shape.of_network(conditional=True)
            channels, classes = options["img_channels"], options["label_dim"]
            _, refused = tries.of(family, block, resolution=shape.resolution, channels=channels, classes=classes)
        if refused is not None:
            yield Problem(here, f"{refused} (datasets.{run.dataset}: resolution {shape.resolution})")


def _ratio_problems(
    run: Run,
    experiment: Experiment,
    *,
    declared: Mapping[str, Origin],
    shapes: Mapping[str, Shape],
    tries: Tries,
    place: Place,
) -> Iterator[Problem]:
    """Yield ratio networks that take the weights of no teacher, or refuse the architecture of the generator."""
    for role, block in run.networks.items():
        if role not in declared or declared[role].family != "ratios":
            continue
        here = (*place, "networks", role)
        if block.options.get("weights") == "teacher" and run.teacher is None:
            yield Problem((*here, "weights"), "got teacher, and the run has none. Fix: weights: random")
        trained = trained_with(run, experiment)
        if trained is None or trained.network is None or trained.dataset not in shapes:
            continue
        shape = shapes[trained.dataset]
        supplied = shape.of_network(conditional=trained.conditional)
        supplied["network"] = {**to_document(trained.network), **supplied}
        taken = components.describe("ratios", block.name).parameters
        if shape.resolution is not None:
            _, refused = tries.of("ratios", block, **{key: each for key, each in supplied.items() if key in taken})
            if refused is not None:
                yield Problem(here, f"{refused} (datasets.{trained.dataset}: resolution {shape.resolution})")


def _freeze_problems(
    run: Run, experiment: Experiment, *, shapes: Mapping[str, Shape], tries: Tries, place: Place
) -> Iterator[Problem]:
    """Yield levels that freeze nothing, and a network of which nothing is left to train."""
    trained = trained_with(run, experiment)
    block = None if trained is None or trained.dataset not in shapes else trained.network
    kinds = components.choices("networks") if block is None else [block.name]
    classes = [components.outline("networks", name) for name in kinds]
    names = list(tries.generator(trained, shapes=shapes)[1])
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
        features = [experiment.features.get(name) for name in (metric.extractors if metric else ())]
        trained = [experiment.runs.get((each and each.run) or "") for each in features]
        learned = [run.dataset for run in trained if run is not None and run.dataset in shapes]
        for other_images, dataset in itertools.product(learned, datasets):
            assert dataset is not None
            for key, own, other in shapes[other_images].differences(shapes[dataset], but=("classes",)):
                found = f"features of a classifier for {key} {own} (datasets.{other_images})"
                yield Problem((*place, column), f"got {found}, expected {other}, that of datasets.{dataset}")
