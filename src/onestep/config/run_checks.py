"""Consistency of a config from inputs to trained networks: names exist, runs have what their objectives need."""

from __future__ import annotations

import functools
import graphlib
import importlib.machinery
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from onestep import components
from onestep.config.blocks import Origin, networks_of
from onestep.config.defaults import MOST_SNAPSHOTS
from onestep.config.execution_checks import execution_problems
from onestep.config.messages import MISSING, Place, Problem, closest, exactly_one, got, unknown
from onestep.config.run import Run
from onestep.config.schema import hidden_characters
from onestep.config.sections import BackboneBlock, ClassEmbeddingsBlock, Experiment
from onestep.config.starts import started_from
from onestep.inputs import address_filename, read_registry

_SCHEMES = ("http://", "https://", "file://")
_ONE_OF_SCHEMES = f"one of {', '.join(_SCHEMES)}"


def run_problems(experiment: Experiment, *, objectives: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield the problems of inputs, datasets, runs, and what uses runs.

    An objective is None without torch; the training job then checks what it needs.
    """
    declared = {name: networks_of(objectives.get(name)) for name in experiment.runs}
    yield from _input_problems(experiment)
    for original, mirror in experiment.mirrors.items():
        wrong = [address for address in (original, mirror) if not address.startswith(_SCHEMES)]
        yield from (Problem(("mirrors", original), f"{got(each)}, expected {_ONE_OF_SCHEMES}") for each in wrong)
    yield from _source_problems(experiment)
    for name, run in experiment.runs.items():
        place = ("runs", name)
        yield from _reference_problems(run, experiment, declared=declared[name], place=place)
        yield from _part_problems(run, place=place)
        yield from _role_problems(run, objectives.get(name), declared=declared[name], place=place)
        yield from _average_problems(run, place=(*place, "ema", "others"))
        yield from _profile_problems(run, place=(*place, "ema", "power"))
        yield from _optimizer_problems(run, place=(*place, "optimizers"))
        yield from execution_problems(run, declared=declared[name], place=place)
    yield from _launch_problems(experiment)
    before = {name: _before(run, experiment, declared=declared[name]) for name, run in experiment.runs.items()}
    try:
        graphlib.TopologicalSorter(before).prepare()
    except graphlib.CycleError as error:
        cycle = " -> ".join(reversed(error.args[1]))
        yield Problem(("runs",), f"{cycle}: each needs the snapshot of the one before. Fix: break the cycle")


def denoisers(experiment: Experiment) -> list[str]:
    """Return the runs that train a denoiser."""
    return [name for name, run in experiment.runs.items() if run.network is not None or run.teacher is not None]


def network_of(model: str, experiment: Experiment) -> str | None:
    """Return the name of the network of a teacher or run; None if only its checkpoint has it."""
    seen: list[str] = []
    while model not in seen:  # a config with a circle is refused elsewhere
        seen.append(model)
        teacher, run = experiment.teachers.get(model), experiment.runs.get(model)
        if teacher is None and run is not None and run.network is not None:
            return run.network.name
        model = (teacher.run if teacher is not None else run and run.teacher) or model
    return None


def backbones_of(run: Run, declared: Mapping[str, Origin]) -> tuple[str, ...]:
    """Return the entries of `backbones` that a run loads, for discriminators and for `declared` feature networks."""
    names = list(run.discriminator.backbones) if run.discriminator else []
    names += [name for each in run.networks.values() for name in each.options.get("backbones", ())]
    names += [origin.name for origin in declared.values() if origin.kind == "FeatureNetwork" and origin.name]
    return tuple(dict.fromkeys(names))


def _input_problems(experiment: Experiment) -> Iterator[Problem]:
    for name, source in experiment.inputs.items():
        place = ("inputs", name)
        if wrong := exactly_one(vars(source), "package", "file", "url", "published"):
            yield Problem(place, wrong)
            continue
        if source.package is None and source.path is not None:
            yield Problem((*place, "path"), "a path inside a package, and no package is given. Fix: use `file`")
        if source.url is None and source.size is not None:
            yield Problem((*place, "size"), "got a size without a `url`. Fix: remove it")
        if source.package is not None:
            absent = [key for key in ("path", "sha256", "licence") if getattr(source, key) is None]
            yield from (Problem((*place, key), MISSING) for key in absent)
            if source.path is not None and ({"..", "/"} & set(PurePosixPath(source.path).parts)):
                yield Problem((*place, "path"), f"{got(source.path)}, expected a path inside the package, without ..")
        elif source.url is not None:
            yield from _address_problems(source.url, place=(*place, "url"))
        elif source.published is not None:
            registry = read_registry()
            yield from unknown((*place, "published"), source.published, registry, of="names of fetch/registry.yaml")
            given = [key for key in ("sha256", "licence") if getattr(source, key) is not None]
            fix = "already in fetch/registry.yaml and inputs.lock.yaml. Fix: remove it"
            yield from (Problem((*place, key), fix) for key in given)


def _address_problems(address: str, *, place: Place) -> Iterator[Problem]:
    if (
        not address.startswith(_SCHEMES)
        or address_filename(address) in ("", ".", "..")
        or hidden_characters(address_filename(address))
    ):
        yield Problem(place, f"{got(address)}, expected {_ONE_OF_SCHEMES}, and the name of a file at the end")
    elif "//drive.google.com/" in address:
        fix = "Fix: download the file by hand and give its path as `file`"
        yield Problem(place, f"{got(address)}, and Google Drive needs a browser. {fix}")


def _source_problems(experiment: Experiment) -> Iterator[Problem]:
    wholes = [name for name, dataset in experiment.datasets.items() if dataset.dataset is None]
    for name, dataset in experiment.datasets.items():
        yield from unknown(("datasets", name, "input"), dataset.input, experiment.inputs, of="inputs")
        yield from unknown(("datasets", name, "dataset"), dataset.dataset, wholes, of="datasets that are no parts")
    for name in experiment.teachers:
        yield from _teacher_problems(name, experiment, place=("teachers", name))
    for name, backbone in experiment.backbones.items():
        yield from _backbone_problems(backbone, place=("backbones", name))
    for name, table in experiment.class_embeddings.items():
        yield from _embedding_problems(table, experiment, place=("class_embeddings", name))
    classifiers = [name for name, run in experiment.runs.items() if run.classifier is not None]
    for section in ("backbones", "features"):
        for name, block in getattr(experiment, section).items():
            yield from unknown((section, name, "run"), block.run, classifiers, of="runs of a classifier")
            yield from unknown((section, name, "input"), block.input, experiment.inputs, of="inputs")


def _teacher_problems(name: str, experiment: Experiment, *, place: Place) -> Iterator[Problem]:
    teacher = experiment.teachers[name]
    if wrong := exactly_one(vars(teacher), "run", "weights", "pickle"):
        yield Problem(place, wrong)
    if teacher.run is not None and teacher.preconditioning is not None:
        fix = "Fix: remove it; the run has its own"
        yield Problem((*place, "preconditioning"), f"{got(teacher.preconditioning)} beside a run. {fix}")
    if name in experiment.runs:
        yield Problem(place, "also the name of a run, and both name the files of samples. Fix: rename one")
    yield from unknown((*place, "run"), teacher.run, denoisers(experiment), of="runs of a denoiser")
    for key in ("weights", "pickle"):
        yield from unknown((*place, key), getattr(teacher, key), experiment.inputs, of="inputs")


def _backbone_problems(backbone: BackboneBlock, *, place: Place) -> Iterator[Problem]:
    if backbone.is_tensors and backbone.input is not None:
        return
    if wrong := exactly_one(vars(backbone), "run", "timm", "extractor"):
        yield Problem(place, f"{wrong}, or `input` alone for tensors without a network")
    elif backbone.run is not None and backbone.input is not None:
        yield Problem((*place, "input"), "the weights of a run are its last snapshot. Fix: remove it")
    elif (network := backbone.timm or backbone.extractor) is not None and backbone.input is None:
        yield Problem((*place, "input"), f"{MISSING}. Fix: name the input that holds the weights of {network}")
    elif backbone.timm is not None:
        yield from _timm_problems(backbone.timm, place=(*place, "timm"))


def _embedding_problems(table: ClassEmbeddingsBlock, experiment: Experiment, *, place: Place) -> Iterator[Problem]:
    if wrong := exactly_one(vars(table), "input", "backbone"):
        yield Problem(place, wrong)
        return
    for key in ("dataset", "resolution"):
        if table.backbone is not None and getattr(table, key) is None:
            yield Problem((*place, key), MISSING)
        if table.input is not None and getattr(table, key) is not None:
            yield Problem((*place, key), f"{got(getattr(table, key))} beside a published table. Fix: remove it")
    yield from unknown((*place, "input"), table.input, experiment.inputs, of="inputs")
    yield from unknown((*place, "backbone"), table.backbone, experiment.backbones, of="backbones")
    yield from unknown((*place, "dataset"), table.dataset, experiment.datasets, of="datasets")


def _timm_problems(name: str, *, place: Place) -> Iterator[Problem]:
    """Yield a problem where timm has no such network; without timm the training job finds it."""
    if _is_in_timm(name):
        return
    try:  # here, because importing timm takes seconds that only a mistake need wait for
        with components.computing_shown():
            import timm
    except ModuleNotFoundError:
        return
    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        hint = closest(architecture, timm.list_models())
        yield Problem(place, f"{got(name)}, expected the name of a network of timm {timm.__version__}{hint}")
        return
    yield from unknown(place, name, timm.list_pretrained(f"{architecture}.*"), of=f"weights of {architecture}")


@functools.cache
def _is_in_timm(name: str) -> bool:
    """Whether timm lists these weights, by the text of its files."""
    spec = importlib.machinery.PathFinder.find_spec("timm")
    folders = [Path(place, "models") for place in (spec and spec.submodule_search_locations) or ()]
    # The networks of a family are in one file, whose name has their first letters; the others follow.
    files = sorted(
        (path for folder in folders for path in folder.glob("*.py")), key=lambda path: path.stem[0] != name[:1]
    )
    quoted = (f"'{name}'".encode(), f'"{name}"'.encode())
    return "." in name and any(any(each in text for each in quoted) for text in map(Path.read_bytes, files))


def _reference_problems(
    run: Run, experiment: Experiment, *, declared: Mapping[str, Origin], place: Place
) -> Iterator[Problem]:
    yield from unknown((*place, "dataset"), run.dataset, experiment.datasets, of="datasets")
    yield from unknown((*place, "teacher"), run.teacher, experiment.teachers, of="teachers")
    if run.codec:
        yield from unknown((*place, "codec", "input"), run.codec.input, experiment.inputs, of="inputs")
    backbones = run.discriminator.backbones if run.discriminator else ()
    for index, name in enumerate(backbones):
        here = (*place, "discriminator", "backbones", index)
        yield from unknown(here, name, experiment.backbones, of="backbones")
        yield from _kind_problems(experiment.backbones.get(name), name, as_tensors=False, place=here)
        if name in backbones[:index]:
            yield Problem(here, f"{got(name)}, which is already in this list. Fix: remove it")
    for role, block in run.networks.items():
        for index, name in enumerate(block.options.get("backbones", ())):
            here = (*place, "networks", role, "backbones", index)
            yield from unknown(here, name, experiment.backbones, of="backbones")
            yield from _kind_problems(experiment.backbones.get(name), name, as_tensors=False, place=here)
    for origin in declared.values():
        if origin.kind == "FeatureNetwork" and origin.name is not None:
            here, found = (*place, "objective"), experiment.backbones.get(origin.name)
            yield from unknown(here, origin.name, experiment.backbones, of="backbones")
            as_tensors, pooled = origin.shapes is not None, bool(origin.pooled)
            yield from _kind_problems(found, origin.name, as_tensors=as_tensors, pooled=pooled, place=here)
            if found is not None and found.timm is None and origin.resolution is not None:
                wrong = f"{got(origin.resolution)} with backbones.{origin.name}, expected networks of timm alone"
                yield Problem((*here, "resolution"), wrong)
    table = run.discriminator.class_embeddings if run.discriminator else None
    place = (*place, "discriminator", "class_embeddings")
    yield from unknown(place, table, experiment.class_embeddings, of="class embeddings")
    if table is not None and not run.conditional:
        yield Problem(place, f"{got(table)}, expected none for an unconditional run. Fix: remove it")


def _kind_problems(
    backbone: BackboneBlock | None, name: str, *, as_tensors: bool, pooled: bool = False, place: Place
) -> Iterator[Problem]:
    """Yield a problem where tensors are used as a network, a network as tensors, or an extractor for feature maps."""
    if backbone is not None and backbone.extractor is not None and not pooled:
        yield Problem(place, f"got backbones.{name}, an extractor of vectors, expected an entry with `run` or `timm`")
        return
    if backbone is not None and backbone.is_tensors != as_tensors:
        found, expected = "tensors without a network", "an entry with `run` or `timm`"
        if as_tensors:
            found, expected = "a network", "an entry with `input` alone"
        yield Problem(place, f"got backbones.{name}, {found}, expected {expected}")


def _part_problems(run: Run, *, place: Place) -> Iterator[Problem]:
    if wrong := exactly_one(vars(run), "network", "teacher", "classifier"):
        yield Problem(place, wrong)
    elif run.classifier is not None:
        if run.freeze:
            yield Problem((*place, "freeze"), "got a list, expected an empty one for a classifier")
        if not run.conditional:
            yield Problem((*place, "conditional"), "got false, expected true: a classifier learns from classes")
    for key in ("preconditioning", "dropout"):
        if run.teacher is not None and getattr(run, key) is None:
            yield Problem((*place, key), MISSING)
        if run.teacher is None and getattr(run, key) is not None:
            yield Problem((*place, key), f"{got(getattr(run, key))} without a teacher. Fix: set it in `network`")
    yield from _length_problems(run, place=place)


def _length_problems(run: Run, *, place: Place) -> Iterator[Problem]:
    if run.images < run.batch:
        yield Problem((*place, "images"), f"got {run.images}, expected at least the batch size ({run.batch})")
    if run.snapshot_every < run.batch:
        few = f"got {run.snapshot_every}, expected at least the batch size ({run.batch})"
        yield Problem((*place, "snapshot_every"), few)
    elif run.snapshot_every > 10 * run.images:
        never = f"got {run.snapshot_every}, which is never reached: the run has {run.images} images"
        yield Problem((*place, "snapshot_every"), f"{never}. Fix: the number of images, for one snapshot at the end")
    elif run.images > MOST_SNAPSHOTS * run.snapshot_every:
        many = f"got {run.snapshot_every}, which makes {run.images // run.snapshot_every} snapshots"
        yield Problem((*place, "snapshot_every"), f"{many}, expected at most {MOST_SNAPSHOTS}")
    if len(run.snapshots) > MOST_SNAPSHOTS:
        yield Problem((*place, "snapshots"), f"got {len(run.snapshots)}, expected at most {MOST_SNAPSHOTS}")
    for count in run.snapshots if run.batch <= min(run.images, run.snapshot_every) else ():
        if 0 < count < run.batch:
            few = f"got {count}, expected 0, the start, or at least the batch size ({run.batch})"
            yield Problem((*place, "snapshots"), few)
        elif count > run.images:
            never = f"got {count}, which is never reached: the run has {run.images} images"
            yield Problem((*place, "snapshots"), f"{never}. Fix: remove it, or train longer")


def _role_problems(run: Run, objective: Any, *, declared: Mapping[str, Origin], place: Place) -> Iterator[Problem]:
    if objective is None:
        return
    name = run.objective.name
    for role, origin in declared.items():
        fresh = role in run.networks or getattr(run, role, None) is not None
        present, needed = {
            "Pretrained": (run.network is not None or run.teacher is not None, "`network` or `teacher`"),
            "TeacherCopy": (run.teacher is not None, "`teacher`"),
            "Fresh": (fresh, f"`{role}`" if hasattr(run, role) else f"`networks.{role}`"),
            "AverageOf": (origin.role in declared, f"a network of role {origin.role}"),
            "SampledPairs": (run.pairs is not None, "`pairs`"),
        }.get(origin.kind, (True, ""))
        if not present:
            yield Problem(place, f"missing {needed}, which objective {name} needs as its {role}")
    least, most = getattr(objective, "batch_limits", (1, None))
    if not least <= run.batch <= (most or run.batch):
        wanted = f"at least {least}" if run.batch < least else f"at most {most}"
        yield Problem((*place, "batch"), f"got {run.batch}, expected {wanted} images of a step for objective {name}")
    if run.discriminator is not None and "discriminator" not in declared:
        yield Problem((*place, "discriminator"), f"objective {name} has no discriminator. Fix: remove it")
    trained = dict.fromkeys(phase.trains for phase in objective.phases())
    for role in (role for role in trained if role not in run.optimizers):
        yield Problem((*place, "optimizers", role), f"missing, and objective {name} trains the {role}")
    for role in run.optimizers:
        yield from unknown((*place, "optimizers", role), role, trained, of=f"roles that {name} trains")


def _average_problems(run: Run, *, place: Place) -> Iterator[Problem]:
    """Yield a half-life that a run gives twice: it names the file of its EMA."""
    known: list[float] = [run.ema.half_life]
    for index, half_life in enumerate(run.ema.others):
        if half_life in known:
            where = "the main half-life" if half_life == known[0] else "already in this list"
            yield Problem((*place, index), f"got {half_life}, which is {where}. Fix: remove it")
        known.append(half_life)


def _profile_problems(run: Run, *, place: Place) -> Iterator[Problem]:
    """Yield a single profile, of which no other follows, and one that a run gives twice."""
    if len(run.ema.power) == 1:
        yield Problem(place, f"got {list(run.ema.power)}, expected two or more, such as [0.05, 0.1], or none")
    for index, std in enumerate(run.ema.power):
        if std in run.ema.power[:index]:
            yield Problem((*place, index), f"got {std}, which is already in this list. Fix: remove it")


def _optimizer_problems(run: Run, *, place: Place) -> Iterator[Problem]:
    for role, optimizer in run.optimizers.items():
        if optimizer.betas[1] == 0:
            yield Problem((*place, role, "betas", 1), "got 0, expected a share above 0: it averages squared gradients")
        schedule, here = optimizer.schedule, (*place, role, "schedule")
        if schedule is None:
            continue
        if schedule.name == "inverse_sqrt" and schedule.decay_from is None:
            yield Problem((*here, "decay_from"), MISSING)
        if schedule.name != "inverse_sqrt" and schedule.decay_from is not None:
            yield Problem((*here, "decay_from"), f"got {schedule.decay_from}, expected none for {schedule.name}")
        if schedule.name != "cosine" and schedule.final:
            yield Problem((*here, "final"), f"got {schedule.final}, expected none for {schedule.name}")
        if schedule.warmup >= run.images:
            yield Problem((*here, "warmup"), f"got {schedule.warmup}, expected less than the images ({run.images})")


def _before(run: Run, experiment: Experiment, *, declared: Mapping[str, Origin]) -> list[str]:
    """Return the runs that must end before a run can begin."""
    table = experiment.class_embeddings.get((run.discriminator and run.discriminator.class_embeddings) or "")
    names = [*backbones_of(run, declared), table.backbone or "" if table else ""]
    sources = [experiment.teachers.get(run.teacher or ""), *(experiment.backbones.get(name) for name in names)]
    before = [source.run for source in sources if source is not None and source.run is not None]
    return before + [name for _, name in started_from(run, experiment)]


def _launch_problems(experiment: Experiment) -> Iterator[Problem]:
    launch = experiment.launch
    families = [name.partition(".")[0] for name in experiment.runs]
    for name in launch.runs:
        yield from unknown(("launch", "runs", name), name, dict.fromkeys([*experiment.runs, *families]), of="runs")
    if launch.backend == "local" and launch.nodes > 1:
        yield Problem(("launch", "nodes"), f"got {launch.nodes}, expected 1: `backend: local` is this machine")
    if launch.gpus == "gres" and "gres" in launch.sbatch:
        own = "and `gpus: gres` requests GPUs by the same option. Fix: set `gpus: gpus`"
        yield Problem(("launch", "sbatch", "gres"), f"{got(launch.sbatch['gres'])}, {own}")
    for name in ("", *launch.runs) if launch.backend != "local" else ():
        if launch.signal_seconds >= 3600 * launch.of(name).hours:
            place = ("launch", *(("runs", name) if name else ()), "hours")
            short = f"got {launch.of(name).hours:g}, expected more than signal_seconds ({launch.signal_seconds} s)"
            yield Problem(place, f"{short}: the job would stop as it starts")
    for name, run in experiment.runs.items():
        processes = launch.of(name).processes
        if run.batch % processes:
            uneven = f"{processes} processes train {name}, whose batch size of {run.batch} is no multiple of that"
            fix = "Fix: change it here, in launch.runs, or in the run"
            yield Problem(("launch", "processes_per_node"), f"{uneven}. {fix}")
