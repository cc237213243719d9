"""The pipeline on one page: one verb per rule, each reading the files of the one before and writing its own."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

# Imports stand inside the verbs: a verb starts quickly, and its code fingerprint covers what it uses and no more.


def fetch(options: argparse.Namespace) -> int:
    """Bring the inputs that config.yaml's runs and tables need, or those of --only; for a rule, one --source."""
    from onestep.fetch.store import Store
    from onestep.inputs import is_offline

    offline = options.offline or is_offline()
    if options.source is not None:
        from onestep.fetch.store import fetch_input, read_mirrors

        store = Store(mirrors=read_mirrors(options.config), offline=offline)
        fetch_input(options.source, target=options.output, store=store)
        return 0
    from onestep.fetch.overview import Overview
    from onestep.plan import Plan

    # The folder of config.yaml is the working directory of everything else, too.
    with contextlib.chdir(options.config.parent):
        plan = Plan.read(options.config.name)
        store = Store(mirrors=plan.experiment.mirrors, offline=offline)
        overview = Overview.of(plan, only=options.only, store=store)
        lines = overview.listed() if options.list else overview.verified() if options.verify else overview.fetched()
        for line in lines:
            print(line, flush=True)
    return 0


def prepare(options: argparse.Namespace) -> int:
    """Write a dataset archive, its card and its contact sheet; work that was cut off is taken up."""
    from onestep.data._archive import prepare
    from onestep.data._origin import origin_of
    from onestep.data._processes import cores
    from onestep.fingerprint import Fingerprints

    dataset = _component("data", options.dataset, source=options.source)
    code = Fingerprints().fingerprint("onestep.cli:prepare", plugins=[f"onestep.data.{options.dataset['name']}"])
    origin = origin_of(options.source, options=options.dataset, code=code)
    prepare(dataset, target=options.output, origin=origin, workers=options.workers or cores())
    return 0


def resolve(options: argparse.Namespace) -> int:
    """Write one run's configuration with every default filled in."""
    import yaml

    from onestep.config.reading import read_experiment, run_document
    from onestep.files import write_text

    document = run_document(read_experiment(options.config), options.run)
    write_text(options.output, yaml.safe_dump(document, sort_keys=False, allow_unicode=True))
    return 0


def embed(options: argparse.Namespace) -> int:
    """Average a backbone's last features over the images of each class of a dataset."""
    from onestep.discriminators import build_backbone
    from onestep.evaluation.class_means import write_class_means

    backbone = build_backbone(options.backbone, timm=options.timm)
    write_class_means(backbone, options.data, resolution=options.resolution, output=options.output)
    return 0


def train(options: argparse.Namespace) -> int:
    """Train a run to its end, taking it up where it was cut off, and publish it; a finished run is only published."""
    if options.processes > 1 and "RANK" not in os.environ:
        from onestep.launch.local import run_locally

        return run_locally(sys.argv[1:], processes=options.processes)
    from onestep.exits import Exit
    from onestep.training.stopping import listening

    # Before torch is imported, which takes a while: a signal then would end the process as any other.
    with listening() as stop:
        from onestep.fingerprint import Fingerprints
        from onestep.stages import training_code
        from onestep.training.run import carry_out

        assignment = _assignment(options)
        code = training_code(assignment.document(), fingerprints=Fingerprints())
        folder = assignment.folder(code)
        finished = carry_out(assignment, folder=folder, code=code, output=options.output, stop=stop.asked)
    return Exit.FINISHED if finished else Exit.STOPPED


def _assignment(options: argparse.Namespace) -> Any:
    """Return which run a verb trains."""
    from onestep.training.assignment import Assignment, Inputs

    inputs = Inputs(
        run=options.run,
        data=options.data,
        teacher=options.teacher,
        backbones=dict(options.backbone),
        class_embeddings=options.class_embeddings,
    )
    return Assignment(
        inputs=inputs,
        state=options.state,
        code_in_spec=options.code_in_spec,
        state_seconds=options.state_seconds,
        micro_batch=options.micro_batch if options.micro_batch is not None else options.rows_per_pass,
        cache=options.cache,
    )


def launch(options: argparse.Namespace) -> int:
    """Train and publish a run where config.yaml's `launch` says: here, or as a SLURM job that is found again."""
    import shutil

    import yaml

    from onestep.config.reading import read_experiment

    run = yaml.safe_load(options.run.read_text())["run"]
    site = read_experiment(options.config).launch.of(run)
    options.state_seconds, options.processes = site.state_seconds, site.processes
    if site.backend == "local" or (site.backend == "auto" and shutil.which("sbatch") is None):
        if site.processes == 1:
            return train(options)
        from onestep.launch.local import run_locally

        return run_locally(_arguments(train, options), processes=site.processes)
    from onestep.fingerprint import Fingerprints
    from onestep.launch.journal import Journal
    from onestep.launch.launcher import launch as launch_job
    from onestep.launch.submission import request_for
    from onestep.stages import training_code

    assignment = _assignment(options)
    folder = assignment.folder(training_code(assignment.document(), fingerprints=Fingerprints()))
    request = request_for(run, assignment=assignment, site=site)
    return launch_job(request, journal=Journal(folder), target=options.output / run, log=options.log)


def cancel(options: argparse.Namespace) -> int:
    """End the SLURM jobs that train a run, under any config it had; what they saved stays."""
    from onestep.launch.jobs import cancel_jobs

    for line in cancel_jobs(options.run, state=options.state):
        print(line)
    return 0


def convert(options: argparse.Namespace) -> int:
    """Turn a published pickle, or a run's snapshot, into safetensors and a YAML of the architecture."""
    from onestep.checkpoints.conversion import convert_edm_pickle, convert_snapshot

    files = {"weights": options.output, "architecture": options.output.with_suffix(".yaml")}
    if options.source.suffix == ".safetensors":
        convert_snapshot(options.source, **files)
    else:
        convert_edm_pickle(options.source, **files, preconditioning=options.preconditioning)
    return 0


def sample(options: argparse.Namespace) -> int:
    """Generate one image a seed into an .npz of uint8 [N, H, W, C] pixels."""
    from onestep.sampling._job import write_samples

    write_samples(_sampling_job(options), output=options.output, grid=options.grid)
    return 0


def extract(options: argparse.Namespace) -> int:
    """Pass generated images (.npz) or a dataset (.zip) through a feature network."""
    from onestep.evaluation.extraction import write_features

    named = {key: value for key in ("dataset", "input") if (value := getattr(options, key)) is not None}
    network = _feature_network(options.features, weights=options.weights, name=options.features_name)
    write_features(network, options.images, output=options.output, subject=named or None)
    return 0


def observe(options: argparse.Namespace) -> int:
    """Generate one image a seed and pass it through feature networks at once; only features and a grid are written."""
    if options.processes > 1 and "RANK" not in os.environ:
        from onestep.launch.local import run_locally

        return run_locally(sys.argv[1:], processes=options.processes)
    from onestep import distributed
    from onestep.evaluation.fused_sampling import sample_features

    weights, stem = dict(options.feature_weights), options.output
    networks = {
        stem.with_name(f"{stem.name}.{name}.npz"): _feature_network(block, weights=weights[name], name=name)
        for name, block in options.features.items()
    }
    with distributed.joined() as ranks:
        sample_features(_sampling_job(options), networks, grid=options.grid, ranks=ranks)
    return 0


def measure(options: argparse.Namespace) -> int:
    """Compute one metric of one block of seeds."""
    from onestep.evaluation.measurement import MeasuredFiles, write_measurement

    files = MeasuredFiles(
        features=options.generated,
        real=options.real,
        real_input=options.real_input,
        pixels=options.pixels,
        real_pixels=options.real_pixels,
    )
    metric = _component("metrics", options.metric)
    write_measurement(metric, name=options.name, options=options.metric, files=files, output=options.output)
    return 0


def evaluate(options: argparse.Namespace) -> int:
    """Measure images from anywhere: a folder of pictures, a zip, an .npz or a .pt, against others or statistics."""
    from onestep.evaluation.standalone import NamedMetric, write_evaluation

    try:
        network = options.features and _feature_network(options.features, weights=options.weights, name=None)
        metrics = [NamedMetric(metric=_component("metrics", block), options=block) for block in options.metrics]
    except (TypeError, KeyError) as error:
        raise ValueError(f"--features and --metrics take blocks as config.yaml has them: {error}") from error
    values = write_evaluation(
        network, metrics, images=options.images, reference=options.reference, output=options.output
    )
    print("\n".join(f"{name}: {value:.6g}" for name, value in values.items()))
    return 0


def select(options: argparse.Namespace) -> int:
    """Choose among a run's snapshots by one number of each, and keep the chosen one."""
    from onestep.evaluation.selection import write_selection

    write_selection(options.choice, results=options.results, output=options.output)
    return 0


def tabulate(options: argparse.Namespace) -> int:
    """Write one table as JSON, CSV, Markdown and LaTeX, and its chart as SVG."""
    from onestep.report.tabulation import write_tables

    write_tables(options.table, results=options.results, training_code=options.training_code, folder=options.output)
    return 0


def report(options: argparse.Namespace) -> int:
    """Write the results page."""
    from onestep.report.evidence import read_evidence
    from onestep.report.page import write_page

    evidence = read_evidence(
        options.results,
        config=options.config,
        benchmarks=options.benchmarks,
        reproduce=(f"snakemake --directory {Path.cwd().name} --profile profiles/local",),
    )
    write_page(options.output, evidence=evidence)
    return 0


def export(options: argparse.Namespace) -> int:
    """Write a generator for other people: one file of weights that builds itself, and a model card."""
    from onestep.export import export as write_export

    write_export(options.weights, run=options.run, table=options.table, licence=options.licence, folder=options.output)
    print(f"{options.output}: generator.safetensors, README.md")
    return 0


def show(options: argparse.Namespace) -> int:
    """Print a table, and where its page is."""
    print(options.table.with_suffix(".md").read_text())
    if options.page is not None:
        print(f"Results page: {options.page.resolve()}")
    return 0


def compare(options: argparse.Namespace) -> int:
    """Put two measurements side by side; the exit code is 1 where they may not be compared."""
    from onestep.report.comparison import compare as comparison

    lines = comparison(options.first, options.second)
    print("\n".join(lines))
    return int(any(line.startswith("not comparable") for line in lines))


def status(options: argparse.Namespace) -> int:
    """Print the progress of each run, its job, and whether the training code has changed since."""
    from onestep import components
    from onestep.launch.jobs import jobs_of
    from onestep.plan import Plan
    from onestep.status import status_lines

    plan = Plan.read(options.config)
    runs = {name: run.images for name, run in plan.experiment.runs.items()}
    codes = {name: plan.training.code_of(name) for name in runs}
    classes = {name: components.outline("metrics", metric.name) for name, metric in plan.experiment.metrics.items()}
    for line in status_lines(
        runs,
        codes=codes,
        job_of=lambda run: jobs_of(run, state=Path("state")),
        metrics={name: next(iter(metric.values)) for name, metric in classes.items()},
        results=Path("results"),
        state=Path("state"),
    ):
        print(line)
    return 0


def doctor(options: argparse.Namespace) -> int:
    """Look whether this site is ready for the runs of config.yaml; the exit code is 1 where something will fail."""
    from onestep.launch.cluster import Cluster
    from onestep.launch.doctor import Mark, examine, profile_lines

    # Without --config and without a config.yaml here, the site is looked at all the same.
    config = options.config or Path("config.yaml")
    found = []
    with contextlib.chdir(config.parent):
        named = Path(config.name) if options.config or config.exists() else None
        for finding in examine(named, state=Path("state"), cluster=Cluster()):
            print(finding.line(), flush=True)
            found.append(finding)
    for line in profile_lines(found):
        print(line)
    return int(any(each.mark is Mark.BAD for each in found))


def bench_train(options: argparse.Namespace) -> int:
    """Measure how fast a run trains here under option sets, with random weights and no files; print a table."""
    from onestep import distributed
    from onestep.bench.option_sets import OPTION_SETS
    from onestep.bench.random_run import GivenShape
    from onestep.bench.train import bench_training, report_lines, write_findings
    from onestep.config.reading import read_experiment

    given = GivenShape(resolution=options.resolution, channels=options.channels, classes=options.classes)
    with distributed.joined() as ranks:
        found = bench_training(
            read_experiment(options.config),
            options.run,
            sets=options.sets.split(",") if options.sets else OPTION_SETS,
            batch=options.batch,
            rounds=options.steps,
            given=given,
            ranks=ranks,
        )
    print("\n".join(report_lines(found)))
    if options.output is not None:
        write_findings(options.output, found)
    return 0


def _component(family: str, options: Mapping[str, Any], **supplied: Any) -> Any:
    """Build a component from its block and what the pipeline supplies."""
    from onestep import components

    return components.build(family, options, **supplied)


def _sampling_job(options: argparse.Namespace) -> Any:
    """Return the images that a verb generates."""
    from onestep.sampling._job import SamplingJob

    named = {"model": options.model, "sampler": options.sampler_name, "seeds": options.seeds}
    return SamplingJob(
        weights=options.weights,
        sampler=_component("sampling", options.sampler),
        options=options.sampler,
        seeds=_seeds(options.seeds),
        batch=options.batch,
        subject=named if options.model and options.sampler_name else {},
    )


def _feature_network(block: Mapping[str, Any], *, weights: Path, name: str | None) -> Any:
    """Return a feature network with its identity."""
    from onestep.evaluation.extraction import FeatureNetwork

    extractor = _component("features", block, weights=weights)
    return FeatureNetwork(extractor=extractor, weights=weights, options=block, name=name)


def _seeds(text: str) -> range:
    """Return the seeds of `first-last`, both included."""
    first, last = (int(part) for part in text.split("-"))
    return range(first, last + 1)


def _arguments(verb: Callable[[argparse.Namespace], int], options: argparse.Namespace) -> list[str]:
    """Return a verb and its options as they are typed."""
    typed = [verb.__name__]
    for option, _, default in _OPTIONS[verb]:
        value = getattr(options, option.replace("-", "_"))
        if value is True:
            typed.append(f"--{option}")
        elif isinstance(default, list):
            typed += [word for name, path in value for word in (f"--{option}", f"{name}={path}")]
        elif value is not None and value is not False:
            typed += [f"--{option}", str(value)]
    return typed


def _named_path(text: str) -> tuple[str, Path]:
    name, _, path = text.partition("=")
    return name, Path(path)


# What the two verbs that train a run are told of it.
_TRAINED: list[tuple[str, Callable[[str], Any], Any]] = [
    ("run", Path, ...),
    ("data", Path, ...),
    ("teacher", Path, None),
    ("backbone", _named_path, []),
    ("class-embeddings", Path, None),
    ("state", Path, ...),
    ("output", Path, ...),
    ("code-in-spec", bool, False),
    ("micro-batch", int, None),
    ("rows-per-pass", int, None),  # the former name of --micro-batch
    ("cache", Path, None),
]

# Each verb's options: name, how to read it, and its default (... where it must be given).
_OPTIONS: dict[Callable[[argparse.Namespace], int], list[tuple[str, Callable[[str], Any], Any]]] = {
    fetch: [
        ("config", Path, Path("config.yaml")),
        ("only", str, []),
        ("list", bool, False),
        ("verify", bool, False),
        ("offline", bool, False),
        ("source", json.loads, None),
        ("output", Path, None),
    ],
    prepare: [("dataset", json.loads, ...), ("source", Path, ...), ("output", Path, ...), ("workers", int, None)],
    resolve: [("config", Path, ...), ("run", str, ...), ("output", Path, ...)],
    embed: [
        ("backbone", Path, ...),
        ("timm", str, None),
        ("data", Path, ...),
        ("resolution", int, ...),
        ("output", Path, ...),
    ],
    train: [*_TRAINED, ("processes", int, 1), ("state-seconds", float, 300.0)],
    launch: [("config", Path, Path("config.yaml")), *_TRAINED, ("log", Path, None)],
    cancel: [("state", Path, Path("state"))],
    convert: [("source", Path, ...), ("preconditioning", str, "edm"), ("output", Path, ...)],
    sample: [
        ("weights", Path, ...),
        ("sampler", json.loads, ...),
        ("seeds", str, ...),
        ("model", str, None),
        ("sampler-name", str, None),
        ("batch", int, 256),
        ("grid", Path, None),
        ("output", Path, ...),
    ],
    observe: [
        ("weights", Path, ...),
        ("sampler", json.loads, ...),
        ("seeds", str, ...),
        ("model", str, None),
        ("sampler-name", str, None),
        ("batch", int, 256),
        ("features", json.loads, ...),
        ("feature-weights", _named_path, []),
        ("processes", int, 1),
        ("grid", Path, None),
        ("output", Path, ...),
    ],
    extract: [
        ("images", Path, ...),
        ("features", json.loads, ...),
        ("features-name", str, None),
        ("weights", Path, ...),
        ("dataset", str, None),
        ("input", str, None),
        ("output", Path, ...),
    ],
    measure: [
        ("metric", json.loads, ...),
        ("name", str, ...),
        ("generated", Path, None),
        ("real", Path, None),
        ("real-input", str, None),
        ("pixels", Path, None),
        ("real-pixels", Path, None),
        ("output", Path, ...),
    ],
    evaluate: [
        ("images", Path, ...),
        ("reference", Path, None),
        ("features", json.loads, None),
        ("weights", Path, None),
        ("metrics", json.loads, []),
        ("output", Path, ...),
    ],
    select: [("choice", json.loads, ...), ("results", Path, ...), ("output", Path, ...)],
    tabulate: [
        ("table", json.loads, ...),
        ("training-code", json.loads, ...),
        ("results", Path, ...),
        ("output", Path, ...),
    ],
    report: [("config", Path, ...), ("results", Path, ...), ("benchmarks", Path, ...), ("output", Path, ...)],
    export: [
        ("weights", Path, ...),
        ("run", Path, ...),
        ("table", Path, None),
        # What comes from one of EDM's networks stays under its terms; another network's owner says otherwise.
        ("licence", str, "cc-by-nc-sa-4.0"),
        ("output", Path, ...),
    ],
    status: [("config", Path, Path("config.yaml"))],
    doctor: [("config", Path, None)],
}

# The same for the verbs below `onestep bench`.
_BENCH_OPTIONS: dict[Callable[[argparse.Namespace], int], list[tuple[str, Callable[[str], Any], Any]]] = {
    bench_train: [
        ("config", Path, Path("config.yaml")),
        ("run", str, ...),
        ("batch", int, None),
        ("steps", int, 5),
        ("sets", str, None),
        ("resolution", int, None),
        ("channels", int, None),
        ("classes", int, None),
        ("output", Path, None),
    ],
}


def main(arguments: list[str] | None = None) -> int:
    """Run one verb; return its exit code. What the user can mend is said in one line, without a traceback."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    started = time.monotonic()
    try:
        code = options.verb(options)
    except (ValueError, OSError) as error:
        for line in str(error).splitlines() or [repr(error)]:
            print(f"onestep {options.verb.__name__.replace('_', ' ')}: {line}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    logging.getLogger(__name__).debug("%s took %.1f s", options.verb.__name__, time.monotonic() - started)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="onestep", description=__doc__)
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    for verb, options in _OPTIONS.items():
        _describe(verbs, verb.__name__, verb=verb, options=options)
    benches = verbs.add_parser("bench", help="Measure speed.").add_subparsers(required=True, metavar="WHAT")
    for verb, options in _BENCH_OPTIONS.items():
        _describe(benches, verb.__name__.removeprefix("bench_"), verb=verb, options=options)
    shown = verbs.add_parser("show", help=show.__doc__, description=show.__doc__)
    shown.set_defaults(verb=show)
    shown.add_argument("table", type=Path)
    shown.add_argument("--page", type=Path)
    verbs.choices["cancel"].add_argument("run", metavar="RUN")
    compared = verbs.add_parser("compare", help=compare.__doc__, description=compare.__doc__)
    compared.set_defaults(verb=compare)
    for name in ("first", "second"):
        compared.add_argument(name, type=Path, metavar=f"{name.upper()}.json")
    return parser


def _describe(verbs: Any, name: str, *, verb: Callable[[argparse.Namespace], int], options: list) -> None:
    """Add a verb and its options to a parser's verbs."""
    described = verbs.add_parser(name, help=verb.__doc__, description=verb.__doc__)
    described.set_defaults(verb=verb)
    for option, read, default in options:
        if read is bool:
            described.add_argument(f"--{option}", action="store_true")
        elif isinstance(default, list):
            metavar = {_named_path: "NAME=PATH", json.loads: "JSON"}.get(read, "NAME")
            described.add_argument(
                f"--{option}", type=read, action="extend", nargs="+", default=default, metavar=metavar
            )
        else:
            described.add_argument(f"--{option}", type=read, required=default is ..., default=default)


if __name__ == "__main__":
    sys.exit(main())
