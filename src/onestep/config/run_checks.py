"""What must hold between the sections of a config, up to the trained networks: names exist, runs are whole."""

from __future__ import annotations

import difflib
import graphlib
from collections.abc import Iterable, Iterator

from onestep import plugins
from onestep.config.messages import Place, Problem, exactly_one, found, missing_key, not_among
from onestep.config.run import Run
from onestep.config.sections import BackboneBlock, ClassEmbeddingsBlock, Experiment, InputBlock
from onestep.inputs import address_filename, read_registry

_SCHEMES = ("http://", "https://", "file://")
_ONE_OF_SCHEMES = f"one of {', '.join(_SCHEMES)}"


def run_problems(experiment: Experiment) -> Iterator[Problem]:
    """Yield what is wrong with inputs, datasets, runs, and what is made of runs."""
    yield from _input_problems(experiment)
    yield from _mirror_problems(experiment)
    yield from _source_problems(experiment)
    for name, run in experiment.runs.items():
        yield from _reference_problems(run, experiment, place=("runs", name))
        yield from _part_problems(run, place=("runs", name))
        yield from _role_problems(run, place=("runs", name))
        yield from _average_problems(run, place=("runs", name, "ema", "others"))
        yield from _speed_problems(run, place=("runs", name))
    yield from _launch_problems(experiment)
    yield from _cycles(experiment)


def unknown(place: Place, name: str | None, known: Iterable[str], *, of: str) -> Iterator[Problem]:
    """Yield a problem where a name is given that is none of the known ones."""
    known = list(known)
    if name is not None and name not in known:
        yield Problem(place, not_among(name, known, of=of))


def denoisers(experiment: Experiment) -> list[str]:
    """Return the runs that train a denoiser."""
    return [name for name, run in experiment.runs.items() if run.network is not None or run.teacher is not None]


def _classifiers(experiment: Experiment) -> list[str]:
    return [name for name, run in experiment.runs.items() if run.classifier is not None]


def _input_problems(experiment: Experiment) -> Iterator[Problem]:
    kinds = ("package", "file", "url", "published")
    for name, source in experiment.inputs.items():
        place = ("inputs", name)
        if wrong := exactly_one(kinds, given=[key for key in kinds if getattr(source, key) is not None]):
            yield Problem(place, wrong)
            continue
        if source.package is None and source.path is not None:
            yield Problem((*place, "path"), "a place inside a package, but none is named; the path of a file is `file`")
        if source.url is None and source.size is not None:
            yield Problem((*place, "size"), "only what has a `url` has it; take it away")
        if source.package is not None:
            absent = [key for key in ("path", "sha256", "licence") if getattr(source, key) is None]
            yield from (Problem((*place, key), missing_key()) for key in absent)
        elif source.url is not None:
            yield from _address_problems(source.url, place=(*place, "url"))
        elif source.published is not None:
            yield from _published_problems(source, place=place)


def _address_problems(address: str, *, place: Place) -> Iterator[Problem]:
    if not address.startswith(_SCHEMES) or not address_filename(address):
        yield Problem(place, f"{found(address)}, expected {_ONE_OF_SCHEMES} and, at its end, the name of a file")
    elif "//drive.google.com/" in address:
        yield Problem(place, "Google Drive asks a person first; get the file by hand and name its path as `file`")


def _published_problems(source: InputBlock, *, place: Place) -> Iterator[Problem]:
    registry = read_registry()
    yield from unknown((*place, "published"), source.published, registry, of="names of fetch/registry.yaml")
    for key in ("sha256", "licence"):
        if getattr(source, key) is not None:
            yield Problem((*place, key), "fetch/registry.yaml says it, and inputs.lock.yaml keeps it; take it away")


def _mirror_problems(experiment: Experiment) -> Iterator[Problem]:
    for original, mirror in experiment.mirrors.items():
        for address in (original, mirror):
            if not address.startswith(_SCHEMES):
                yield Problem(("mirrors", original), f"{found(address)}, expected {_ONE_OF_SCHEMES}")


def _source_problems(experiment: Experiment) -> Iterator[Problem]:
    """Yield what is wrong with where datasets, teachers, backbones and features come from."""
    for name, dataset in experiment.datasets.items():
        yield from unknown(("datasets", name, "input"), dataset.input, experiment.inputs, of="inputs")
    for name, teacher in experiment.teachers.items():
        place = ("teachers", name)
        given = [key for key in ("run", "pickle") if getattr(teacher, key) is not None]
        if wrong := exactly_one(("run", "pickle"), given=given):
            yield Problem(place, wrong)
        if teacher.run is not None and teacher.preconditioning is not None:
            yield Problem((*place, "preconditioning"), "only a pickle has it here; a run says its own")
        if name in experiment.runs:
            yield Problem(place, "also the name of a run; samples are filed under either, so rename one of them")
        yield from unknown((*place, "run"), teacher.run, denoisers(experiment), of="runs of a denoiser")
        yield from unknown((*place, "pickle"), teacher.pickle, experiment.inputs, of="inputs")
    for name, backbone in experiment.backbones.items():
        yield from _backbone_problems(backbone, experiment, place=("backbones", name))
    for name, table in experiment.class_embeddings.items():
        yield from _embedding_problems(table, experiment, place=("class_embeddings", name))
    for name, extractor in experiment.features.items():
        place = ("features", name, "run")
        yield from unknown(place, extractor.run, _classifiers(experiment), of="runs of a classifier")
        yield from unknown(("features", name, "input"), extractor.input, experiment.inputs, of="inputs")


def _backbone_problems(backbone: BackboneBlock, experiment: Experiment, *, place: Place) -> Iterator[Problem]:
    given = [key for key in ("run", "timm") if getattr(backbone, key) is not None]
    if wrong := exactly_one(("run", "timm"), given=given):
        yield Problem(place, wrong)
    elif backbone.run is not None and backbone.input is not None:
        yield Problem((*place, "input"), "only timm's networks have it; the weights of a run are its last snapshot")
    elif backbone.timm is not None and backbone.input is None:
        yield Problem((*place, "input"), f"missing, and nothing is downloaded; name the input with {backbone.timm}")
    elif backbone.timm is not None:
        yield from _timm_problems(backbone.timm, place=(*place, "timm"))
    yield from unknown((*place, "run"), backbone.run, _classifiers(experiment), of="runs of a classifier")
    yield from unknown((*place, "input"), backbone.input, experiment.inputs, of="inputs")


def _embedding_problems(table: ClassEmbeddingsBlock, experiment: Experiment, *, place: Place) -> Iterator[Problem]:
    given = [key for key in ("input", "backbone") if getattr(table, key) is not None]
    if wrong := exactly_one(("input", "backbone"), given=given):
        yield Problem(place, wrong)
        return
    for key in ("dataset", "resolution"):
        if table.backbone is not None and getattr(table, key) is None:
            yield Problem((*place, key), missing_key())
        if table.input is not None and getattr(table, key) is not None:
            yield Problem((*place, key), "only a table that is computed has it; a published one is an input alone")
    yield from unknown((*place, "input"), table.input, experiment.inputs, of="inputs")
    yield from unknown((*place, "backbone"), table.backbone, experiment.backbones, of="backbones")
    yield from unknown((*place, "dataset"), table.dataset, experiment.datasets, of="datasets")


def _timm_problems(name: str, *, place: Place) -> Iterator[Problem]:
    """Yield a problem where timm has no such network; where timm is not installed, the training's job will say it."""
    # Here and not above, because importing timm takes a second that most configs need not wait.
    try:
        import timm
    except ModuleNotFoundError:
        return

    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        close = difflib.get_close_matches(architecture, timm.list_models(), n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        yield Problem(place, f"{found(name)}, expected the name of a network of timm {timm.__version__}{hint}")
        return
    yield from unknown(place, name, timm.list_pretrained(f"{architecture}.*"), of=f"weights of {architecture}")


def _reference_problems(run: Run, experiment: Experiment, *, place: Place) -> Iterator[Problem]:
    yield from unknown((*place, "dataset"), run.dataset, experiment.datasets, of="datasets")
    yield from unknown((*place, "teacher"), run.teacher, experiment.teachers, of="teachers")
    for index, name in enumerate(run.discriminator.backbones if run.discriminator else ()):
        yield from unknown((*place, "discriminator", "backbones", index), name, experiment.backbones, of="backbones")
    table = run.discriminator.class_embeddings if run.discriminator else None
    place = (*place, "discriminator", "class_embeddings")
    yield from unknown(place, table, experiment.class_embeddings, of="class embeddings")
    if table is not None and not run.conditional:
        yield Problem(place, "found class embeddings, expected none: an unconditional run knows no classes")


def _part_problems(run: Run, *, place: Place) -> Iterator[Problem]:
    """Yield what is wrong with what a run trains, and how far."""
    kinds = ("network", "teacher", "classifier")
    if wrong := exactly_one(kinds, given=[key for key in kinds if getattr(run, key) is not None]):
        yield Problem(place, wrong)
    elif run.classifier is not None:
        yield from _classifier_problems(run, place=place)
    for key in ("preconditioning", "dropout"):
        if run.teacher is not None and getattr(run, key) is None:
            yield Problem((*place, key), missing_key())
        if run.teacher is None and getattr(run, key) is not None:
            yield Problem((*place, key), "only a run with a teacher has it here; a network has it in its own block")
    if run.snapshot_every < run.batch:
        few = f"found {run.snapshot_every}, expected at least the batch ({run.batch}): a step takes one snapshot"
        yield Problem((*place, "snapshot_every"), few)


def _classifier_problems(run: Run, *, place: Place) -> Iterator[Problem]:
    if run.freeze:
        yield Problem((*place, "freeze"), "found a list, expected an empty one: only denoisers can be frozen")
    if not run.conditional:
        yield Problem((*place, "conditional"), "found false, expected true: a classifier learns from labels")


def _average_problems(run: Run, *, place: Place) -> Iterator[Problem]:
    """Yield half-lives that a run gives twice: an average's file is named by its own."""
    known: list[float] = [run.ema.half_life]
    for index, half_life in enumerate(run.ema.others):
        if half_life in known:
            where = "the main half-life" if half_life == known[0] else "in this list already"
            yield Problem((*place, index), f"found {half_life}, which is {where}; take it away")
        known.append(half_life)


def _role_problems(run: Run, *, place: Place) -> Iterator[Problem]:
    """Yield where the parts of a run are not those that its objective trains and needs."""
    objective = plugins.load("objectives", run.objective.name)(**run.objective.options)
    present = {
        "generator": run.network is not None or run.teacher is not None,
        "teacher": run.teacher is not None,
        "classifier": run.classifier is not None,
        "discriminator": run.discriminator is not None,
    }
    for role in objective.needs:
        if not present[role]:
            yield Problem(place, f"objective {run.objective.name} needs a {role}, and the run names none")
    if run.discriminator is not None and "discriminator" not in objective.needs:
        useless = f"objective {run.objective.name} has no use for a discriminator; take it away"
        yield Problem((*place, "discriminator"), useless)
    trained = dict.fromkeys(phase.trains for phase in objective.phases())
    for role in (role for role in trained if role not in run.optimizers):
        yield Problem((*place, "optimizers", role), f"missing, but objective {run.objective.name} trains the {role}")
    for role in run.optimizers:
        yield from unknown((*place, "optimizers", role), role, trained, of=f"roles that {run.objective.name} trains")


def _speed_problems(run: Run, *, place: Place) -> Iterator[Problem]:
    """Yield where number types and kernels are asked for that the run has no use for, or that exclude each other."""
    present = {"generator": run.classifier is None, "discriminator": run.discriminator is not None}
    for role in (role for role in present if not present[role]):
        if getattr(run.precision, role) != "float32":
            yield Problem((*place, "precision", role), f"found bfloat16, but the run has no {role}; take it away")
    if run.compile.cuda_graphs and not run.compile.networks:
        lone = "found true, expected false without networks: true, because compiled networks are what is recorded"
        yield Problem((*place, "compile", "cuda_graphs"), lone)
    for role, optimizer in run.optimizers.items():
        if run.compile.fused_optimizer and optimizer.name != "adam":
            lone = f"found true, but torch has no fused {optimizer.name}, which trains the {role}"
            yield Problem((*place, "compile", "fused_optimizer"), lone)


def _cycles(experiment: Experiment) -> Iterator[Problem]:
    """Yield a cycle among runs that start from, or look through, one another."""
    sorter = graphlib.TopologicalSorter({name: _before(run, experiment) for name, run in experiment.runs.items()})
    try:
        sorter.prepare()
    except graphlib.CycleError as error:
        cycle = " -> ".join(reversed(error.args[1]))
        yield Problem(("runs",), f"{cycle}: each waits for the next; let one of them start from something else")


def _before(run: Run, experiment: Experiment) -> list[str]:
    """Return the runs that must end before a run can begin."""
    sources = [experiment.teachers.get(run.teacher)] if run.teacher else []
    discriminator = run.discriminator
    table = experiment.class_embeddings.get(discriminator.class_embeddings) if discriminator else None
    looked_through = [*discriminator.backbones, *([table.backbone] if table else [])] if discriminator else []
    sources += map(experiment.backbones.get, looked_through)
    return [source.run for source in sources if source is not None and source.run is not None]


def _launch_problems(experiment: Experiment) -> Iterator[Problem]:
    """Yield runs that `launch` names and nobody knows, and batches that its processes cannot share."""
    launch = experiment.launch
    for name in launch.runs:
        yield from unknown(("launch", "runs", name), name, experiment.runs, of="runs")
    if launch.backend == "local" and launch.nodes > 1:
        yield Problem(("launch", "nodes"), f"found {launch.nodes}, expected 1: `backend: local` is this machine")
    for name, run in experiment.runs.items():
        processes = launch.of(name).processes
        if run.batch % processes:
            yield Problem(
                ("launch", "processes_per_node"),
                f"{processes} processes train {name}, and its batch of {run.batch} does not divide among them; "
                "choose otherwise here, in launch.runs, or in the run",
            )
