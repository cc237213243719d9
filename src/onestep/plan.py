"""Which file comes from which, and with which options: what the rules ask of config.yaml.

All paths are relative to the working directory, below results/. A *model* is a snapshot of a run, `{run}@{images}`, the
one chosen among them, `{run}@best-...`, or a teacher's name: `onestep.models` spells them. A stage's options are its
own keys of the config alone, spelled as canonical JSON, so that nothing else can rerun it; its code is the fingerprint
of what the stage's verb runs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from onestep import plugins
from onestep._config.values import Row, Table
from onestep.config import Experiment, experiment_document, read_experiment, run_document
from onestep.files import canonical_json, sha256_of_file
from onestep.fingerprint import Fingerprints
from onestep.inputs import absent, is_offline, placed_at
from onestep.models import Choice, Model
from onestep.stages import training_code

RESULTS = "results"


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """What the train rule of one run needs.

    Attributes:
        name: The run.
        data: Its dataset archive.
        weights: Files it starts from or looks through.
        options: Those files as options of `onestep train`.
        snapshots: The files it publishes.
        code: Fingerprint of its training code where the config says that training follows code, else empty.
    """

    name: str
    data: str
    weights: list[str]
    options: str
    snapshots: list[str]
    code: str


@dataclass(frozen=True, kw_only=True)
class RowPlan:
    """A row of a table that is measured: a model of a run or teacher through a sampler.

    Attributes:
        name: The run or teacher.
        model: Its network.
        sampler: The sampler.
        trains: Whether it is a run.
    """

    name: str
    model: Model
    sampler: str
    trains: bool


@dataclass(frozen=True, kw_only=True)
class ObservationPlan:
    """Blocks of images that pass through the same feature networks while they are generated.

    Attributes:
        rule: What the rule is called.
        blocks: Matches `{model}/{sampler}/{seeds}` of these blocks alone.
        features: The networks.
        weights: Their weights, in this order.
        networks: The networks and their options, as an option of `onestep observe`.
        weight_options: The same for their weights.
    """

    rule: str
    blocks: str
    features: tuple[str, ...]
    weights: list[str]
    networks: str
    weight_options: str


class _Number(NamedTuple):
    """A metric of one block of a model's images."""

    model: Model
    sampler: str
    seeds: str
    metric: str

    @property
    def block(self) -> str:
        return f"{self.model}/{self.sampler}/{self.seeds}"

    @property
    def path(self) -> str:
        return f"{RESULTS}/metrics/{self.block}.{self.metric}.json"


class Plan:
    """The config as the rules see it; methods that take `wildcards` are input or params functions."""

    def __init__(self, experiment: Experiment, *, source: str = "config.yaml", fingerprints: Fingerprints) -> None:
        self.experiment, self.source = experiment, source
        self._document = experiment_document(experiment)
        self._fingerprints = fingerprints

    @classmethod
    def read(cls, config: str | Path) -> Plan:
        """Read and check a config.

        Raises:
            ConfigError: Something in it is wrong; one line a problem.
        """
        return cls(read_experiment(config), source=str(config), fingerprints=Fingerprints())

    def _code(self, verb: str, *loaded: str) -> str:
        return self._fingerprints.fingerprint(f"onestep.cli:{verb}", plugins=loaded)

    def _block(self, section: str, name: str) -> dict[str, Any]:
        """Return a component's name and options as the config has them, references to other sections left out."""
        block = self._document[section][name]
        return {key: value for key, value in block.items() if key not in ("input", "run", "features", "references")}

    # Where rules run; none of it is among their params, so that an edit reruns nothing

    @property
    def container(self) -> str | None:
        """The image of the rules that need neither the network nor SLURM's commands."""
        return self.experiment.container

    @property
    def gres(self) -> str | None:
        """One GPU as a generic resource; None where the site wants GPUs asked for otherwise."""
        launch = self.experiment.launch
        named = "gpu" if launch.gpu_type is None else f"gpu:{launch.gpu_type}"
        return f"{named}:1" if launch.gpus == "gres" else None

    @property
    def gpu(self) -> int | None:
        """One GPU by number; None where the site wants GPUs asked for otherwise."""
        return 1 if self.experiment.launch.gpus == "gpus" else None

    @property
    def gpu_model(self) -> str | None:
        """Its type, where it is asked for by number."""
        return self.experiment.launch.gpu_type if self.gpu is not None else None

    @property
    def threads(self) -> int:
        """Processor cores of a job that feeds a GPU or measures: as many as a process of a training."""
        return self.experiment.launch.cpus_per_process

    # Inputs and data

    def fetch_source(self, wildcards: Any) -> str:
        """Where an input comes from."""
        source = self.input_source(wildcards.input)
        return canonical_json({key: value for key, value in source.items() if key != "licence"})

    def fetch_waits_for(self, wildcards: Any) -> list[str]:
        """Nothing; but where the network must not be asked, an absent input stops the workflow before any job.

        Raises:
            ValueError: The input is not on this machine; how to bring it.
        """
        said = absent(self.input_source(wildcards.input), name=wildcards.input) if is_offline() else None
        if said is not None:
            raise ValueError(said)
        return []

    def input_source(self, name: str) -> dict[str, Any]:
        """Return an input's block of the config."""
        return self._document["inputs"][name]

    @property
    def needed_inputs(self) -> list[str]:
        """The inputs that the runs and tables come from, in the order of the config."""
        needed = set(self._needed_inputs())
        return [name for name in self.experiment.inputs if name in needed]

    def _needed_inputs(self) -> Iterator[str | None]:
        """Yield what runs and tables come from: the names of inputs, and None for what no input is needed for."""
        experiment = self.experiment
        runs, tables = experiment.runs.values(), experiment.tables.values()
        for name in self._needed_datasets():
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

    def _needed_datasets(self) -> set[str]:
        """Return the datasets that runs learn from, tables compare with, or class embeddings are computed of."""
        experiment = self.experiment
        tables = experiment.tables.values()
        compared = {each.dataset for table in tables for each in (table, *table.rows)}
        computed = {each.dataset for each in experiment.class_embeddings.values()}
        return {run.dataset for run in experiment.runs.values()} | (compared | computed) - {None}

    def _input(self, name: str) -> str:
        return str(placed_at(self.input_source(name), name=name))

    def dataset_source(self, wildcards: Any) -> str:
        """The input a dataset is made from."""
        return self._input(self.experiment.datasets[wildcards.dataset].input)

    def dataset_options(self, wildcards: Any) -> str:
        """The dataset's reader and its options."""
        return canonical_json(self._block("datasets", wildcards.dataset))

    def prepare_code(self, wildcards: Any) -> str:
        """Fingerprint of what reads and writes the dataset."""
        return self._code("prepare", f"onestep.data.{self.experiment.datasets[wildcards.dataset].name}")

    # Runs and teachers

    def run_document(self, wildcards: Any) -> str:
        """A run with every default filled in."""
        return canonical_json(run_document(self.experiment, wildcards.run))

    @property
    def runs(self) -> Iterator[RunPlan]:
        """What each train rule needs."""
        for name, run in self.experiment.runs.items():
            teacher = [] if run.teacher is None else [f"{RESULTS}/teachers/{run.teacher}.safetensors"]
            backbones = {} if run.discriminator is None else {b: self._backbone(b) for b in run.discriminator.backbones}
            table = self._class_embeddings(name)
            options = [f"--teacher {path}" for path in teacher] + [f"--backbone {b}={p}" for b, p in backbones.items()]
            options += [f"--class-embeddings {path}" for path in table]
            follows = self.experiment.rerun.training_on_code_change
            yield RunPlan(
                name=name,
                data=f"{RESULTS}/data/{run.dataset}.zip",
                weights=[*teacher, *dict.fromkeys(backbones.values()), *table],
                options=" ".join([*options, *(["--code-in-spec"] if follows else [])]),
                snapshots=[
                    self._weights(Model(name=name, images=images, ema=ema))
                    for images in run.snapshots
                    for ema in (None, *run.ema.others)
                ],
                code=self.training_code(name) if follows else "",
            )

    def training_code(self, run: str) -> str:
        """Return the fingerprint of the code that would train a run now."""
        return training_code(run_document(self.experiment, run), fingerprints=self._fingerprints)

    def _weights(self, model: Model) -> str:
        return f"{RESULTS}/{model.weights}"

    def _last_snapshot(self, run: str) -> str:
        return self._weights(Model(name=run, images=self.experiment.runs[run].images))

    def _backbone(self, name: str) -> str:
        backbone = self.experiment.backbones[name]
        return self._last_snapshot(backbone.run) if backbone.run is not None else self._input(backbone.input)

    def _class_embeddings(self, run: str) -> list[str]:
        discriminator = self.experiment.runs[run].discriminator
        name = None if discriminator is None else discriminator.class_embeddings
        if name is None:
            return []
        table = self.experiment.class_embeddings[name]
        return [f"{RESULTS}/class_embeddings/{name}.safetensors" if table.input is None else self._input(table.input)]

    def embedding_backbone(self, wildcards: Any) -> str:
        """The network whose features make a table of class embeddings."""
        return self._backbone(self.experiment.class_embeddings[wildcards.class_embeddings].backbone)

    def embedding_data(self, wildcards: Any) -> str:
        """The images that make a table of class embeddings."""
        return f"{RESULTS}/data/{self.experiment.class_embeddings[wildcards.class_embeddings].dataset}.zip"

    def embedding_options(self, wildcards: Any) -> str:
        """How a table of class embeddings is made, as options of `onestep embed`."""
        table = self.experiment.class_embeddings[wildcards.class_embeddings]
        timm = self.experiment.backbones[table.backbone].timm
        return " ".join([f"--resolution {table.resolution}", *([] if timm is None else [f"--timm {timm}"])])

    def embedding_code(self, wildcards: Any) -> str:
        """Fingerprint of what makes tables of class embeddings."""
        return self._code("embed", *(f"onestep.classifiers.{name}" for name in plugins.choices("classifiers")))

    def teacher_source(self, wildcards: Any) -> str:
        """What a teacher is converted from."""
        teacher = self.experiment.teachers[wildcards.teacher]
        return self._last_snapshot(teacher.run) if teacher.run is not None else self._input(teacher.pickle)

    def teacher_options(self, wildcards: Any) -> str:
        """What is said of a teacher that its file does not say."""
        preconditioning = self.experiment.teachers[wildcards.teacher].preconditioning
        return "" if preconditioning is None else f"--preconditioning {preconditioning}"

    def convert_code(self, wildcards: Any) -> str:
        """Fingerprint of the conversion."""
        return self._code("convert")

    # Samples and features

    def model_weights(self, wildcards: Any) -> str:
        """The network of a model."""
        return self._weights(Model.parse(wildcards.model))

    def _candidates(self, model: Model) -> list[Model]:
        """Return the snapshots among which a model is chosen, the earliest first."""
        return [Model(name=model.name, images=n, ema=model.ema) for n in self.experiment.runs[model.name].snapshots]

    def candidate_snapshots(self, wildcards: Any) -> list[str]:
        """The networks among which one is chosen."""
        return [self._weights(candidate) for candidate in self._candidates(Model.parse(wildcards.model))]

    def candidate_measurements(self, wildcards: Any) -> list[str]:
        """The numbers by which it is chosen."""
        return [number.path for number in self._candidate_numbers(Model.parse(wildcards.model))]

    def _candidate_numbers(self, model: Model) -> Iterator[_Number]:
        by = model.choice
        return (_Number(each, by.sampler, by.seeds, by.metric) for each in self._candidates(model))

    def choice_options(self, wildcards: Any) -> str:
        """The number, which direction of it is better, and the counts of images that name the snapshots."""
        model = Model.parse(wildcards.model)
        metric, value = self.experiment.metrics[model.choice.metric].name, model.choice.value
        return canonical_json(
            {
                "model": str(model),
                "direction": plugins.load("metrics", metric).values[value],
                "images": [candidate.images for candidate in self._candidates(model)],
            }
        )

    def select_code(self, wildcards: Any) -> str:
        """Fingerprint of the choice."""
        return self._code("select")

    def sampler_options(self, wildcards: Any) -> str:
        """The sampler and its options."""
        return canonical_json(self._block("samplers", wildcards.sampler))

    def sample_code(self, wildcards: Any) -> str:
        """Fingerprint of the sampler, the networks and what turns them into pixels."""
        return self._code("sample", *self._drawn_with(wildcards.model, wildcards.sampler))

    def _drawn_with(self, model: str, sampler: str) -> list[str]:
        """Return the modules that a model and a sampler are loaded from by name."""
        networks = [f"onestep.networks.{name}" for name in self._networks_of(Model.parse(model).name)]
        return [f"onestep.sampling.{self.experiment.samplers[sampler].name}", *networks]

    def _networks_of(self, model: str) -> Iterable[str]:
        """Return the network files a run or teacher may be built from; one, unless only its pickle knows."""
        if model in self.experiment.teachers:
            run = self.experiment.teachers[model].run
            return plugins.choices("networks") if run is None else self._networks_of(run)
        described = self.experiment.runs[model]
        return [described.network.name] if described.network is not None else self._networks_of(described.teacher)

    def extractor_weights(self, wildcards: Any) -> str:
        """The weights of a feature network."""
        return self._extractor_weights(wildcards.features)

    def _extractor_weights(self, features: str) -> str:
        extractor = self.experiment.features[features]
        return self._input(extractor.input) if extractor.input is not None else self._last_snapshot(extractor.run)

    def extractor_options(self, wildcards: Any) -> str:
        """The feature network and its options."""
        return canonical_json(self._block("features", wildcards.features))

    def extract_code(self, wildcards: Any) -> str:
        """Fingerprint of the feature network."""
        return self._code("extract", *self._looked_through(wildcards.features))

    def _looked_through(self, *features: str) -> list[str]:
        """Return the modules that feature networks are loaded from by name."""
        chosen = [f"onestep.features.{self.experiment.features[name].name}" for name in features]
        return [*chosen, *(f"onestep.classifiers.{name}" for name in plugins.choices("classifiers"))]

    @property
    def keeps_images(self) -> bool:
        """Whether generated images go into files, from which features are extracted."""
        return self.experiment.storage.images == "keep"

    @property
    def keeps_features(self) -> bool:
        """Whether the features of generated images stay when everything is measured."""
        return self.experiment.storage.features == "keep"

    @property
    def observations(self) -> Iterator[ObservationPlan]:
        """All blocks that anything is measured of, by the feature networks that this takes."""
        blocks: dict[tuple[str, ...], list[str]] = {}
        for block, features in self._features_by_block().items():
            blocks.setdefault(tuple(sorted(features)), []).append(block)
        for features, members in blocks.items():
            weights = [self._extractor_weights(name) for name in features]
            pairs = zip(features, weights, strict=True)
            yield ObservationPlan(
                rule=f"observe_{'_and_'.join(features)}",
                blocks="|".join(map(re.escape, members)),
                features=features,
                weights=weights,
                networks=canonical_json({name: self._block("features", name) for name in features}),
                weight_options=" ".join(f"{name}={path}" for name, path in pairs),
            )

    def _features_by_block(self) -> dict[str, set[str]]:
        """Return for each block of images the feature networks that metrics of it look through."""
        found: dict[str, set[str]] = {}
        for number in self._numbers():
            found.setdefault(number.block, set()).add(self.experiment.metrics[number.metric].features)
        return found

    def _numbers(self) -> Iterator[_Number]:
        """Yield everything that is measured: for tables, for their curves, and to choose snapshots by."""
        for name in self.experiment.tables:
            yield from self._table_numbers(name)
            yield from self._curve_numbers(name)
            for row in self._rows(name):
                if row.model.choice is not None:
                    yield from self._candidate_numbers(row.model)

    def observed_weights(self, wildcards: Any) -> str:
        """The network whose images are observed."""
        return self._weights(Model.parse(wildcards.block.split("/")[0]))

    def observed_sampler(self, wildcards: Any) -> str:
        """What draws them."""
        return canonical_json(self._block("samplers", wildcards.block.split("/")[1]))

    def observed_seeds(self, wildcards: Any) -> str:
        """Their seeds."""
        return wildcards.block.split("/")[2]

    def observe_code(self, wildcards: Any) -> str:
        """Fingerprint of the sampler, the networks and the feature networks."""
        model, sampler, _ = wildcards.block.split("/")
        features = sorted(self._features_by_block()[wildcards.block])
        return self._code("observe", *self._drawn_with(model, sampler), *self._looked_through(*features))

    # Numbers, tables, page

    def generated_features(self, wildcards: Any) -> str:
        """The features a metric looks at."""
        features = self.experiment.metrics[wildcards.metric].features
        return f"{RESULTS}/features/{wildcards.model}/{wildcards.sampler}/{wildcards.seeds}.{features}.npz"

    def real_features(self, wildcards: Any) -> str:
        """The reference that the dataset of the model has for the metric, or else the dataset's own features.

        Of a dataset with published references the images need not be here. Then a metric of generated images alone is
        given these in place of real ones, which it does not look at.
        """
        dataset = self._dataset_of(wildcards.model)
        metric = plugins.load("metrics", self.experiment.metrics[wildcards.metric].name)
        if "real" not in metric.compares and self.experiment.datasets[dataset].references:
            return self.generated_features(wildcards)
        return self._reference(dataset, wildcards.metric) or self._dataset_features(dataset, wildcards.metric)

    def dataset_features(self, wildcards: Any) -> str:
        """A dataset's own features that a metric looks at."""
        return self._dataset_features(wildcards.dataset, wildcards.metric)

    def _dataset_features(self, dataset: str, metric: str) -> str:
        return f"{RESULTS}/features/{dataset}.{self.experiment.metrics[metric].features}.npz"

    def dataset_reference(self, wildcards: Any) -> str:
        """The published reference of a dataset for a metric."""
        reference = self._reference(wildcards.dataset, wildcards.metric)
        if reference is None:
            raise ValueError(f"datasets.{wildcards.dataset}.references: names no reference for {wildcards.metric}")
        return reference

    def _reference(self, dataset: str, metric: str) -> str | None:
        """Return published statistics as they are, or the features of published images, where a metric needs those."""
        source = self.experiment.datasets[dataset].references.get(metric)
        if source is None:
            return None
        chosen = self.experiment.metrics[metric]
        if plugins.load("metrics", chosen.name).takes_statistics:
            return self._input(source)
        return f"{RESULTS}/features/reference/{source}.{chosen.features}.npz"

    def reference_images(self, wildcards: Any) -> str:
        """An input with real images that others compare with."""
        return self._input(wildcards.input)

    def _dataset_of(self, model: str) -> str:
        name = Model.parse(model).name
        if name in self.experiment.runs:
            return self.experiment.runs[name].dataset
        return next(
            table.dataset_of(row)
            for table in self.experiment.tables.values()
            for row in table.rows
            if row.teacher == name
        )

    def metric_options(self, wildcards: Any) -> str:
        """The metric and its options."""
        return canonical_json(self._block("metrics", wildcards.metric))

    def measure_code(self, wildcards: Any) -> str:
        """Fingerprint of the metric."""
        return self._code("measure", f"onestep.metrics.{self.experiment.metrics[wildcards.metric].name}")

    def _rows(self, table: str) -> Iterator[RowPlan]:
        layout = self.experiment.tables[table]
        return (self._row(row, layout) for row in layout.rows if row.is_measured)

    def _row(self, row: Row, table: Table) -> RowPlan:
        name = row.run or row.teacher
        model = Model(name=name) if row.run is None else self._model(row, table)
        return RowPlan(name=name, model=model, sampler=row.sampler, trains=row.run is not None)

    def _model(self, row: Row, table: Table) -> Model:
        """Return the model of a run's row: its last snapshot, or the one that the table has chosen."""
        run = self.experiment.runs[row.run]
        ema = None if row.ema == run.ema.half_life else row.ema
        if table.selected_by is None or len(run.snapshots) == 1:
            return Model(name=row.run, images=run.images, ema=ema)
        metric, _, value = table.columns[table.selected_by].partition(".")
        choice = Choice(metric=metric, value=value, sampler=row.sampler, seeds=table.selection_seeds)
        return Model(name=row.run, choice=choice, ema=ema)

    def table_metrics(self, wildcards: Any) -> list[str]:
        """Every number of a table."""
        return [number.path for number in self._table_numbers(wildcards.table)]

    def _table_numbers(self, name: str) -> Iterator[_Number]:
        table = self.experiment.tables[name]
        metrics = dict.fromkeys(source.partition(".")[0] for source in table.columns.values())
        for row in self._rows(name):
            for seeds in table.seeds:
                yield from (_Number(row.model, row.sampler, seeds, metric) for metric in metrics)

    def _trained_rows(self, table: str) -> Iterator[RowPlan]:
        return (row for row in self._rows(table) if row.trains)

    def table_summaries(self, wildcards: Any) -> list[str]:
        """What each run of a table says of itself."""
        return list(
            dict.fromkeys(f"{RESULTS}/runs/{row.name}/summary.json" for row in self._trained_rows(wildcards.table))
        )

    def table_choices(self, wildcards: Any) -> list[str]:
        """Which snapshots were chosen for a table."""
        chosen = [row.model for row in self._rows(wildcards.table) if row.model.choice is not None]
        return [str(Path(path).with_suffix(".json")) for path in dict.fromkeys(map(self._weights, chosen))]

    def table_options(self, wildcards: Any) -> str:
        """A table's layout, the metrics of its columns, and its rows."""
        table = self.experiment.tables[wildcards.table]
        metrics = dict.fromkeys(source.partition(".")[0] for source in table.columns.values())
        rows = [self._row_options(row, table) for row in table.rows]
        layout = {
            key: value
            for key, value in self._document["tables"][wildcards.table].items()
            if key not in ("rows", "curves")
        }
        chosen = {metric: {"name": self.experiment.metrics[metric].name} for metric in metrics}
        told = {"name": wildcards.table, "layout": layout, "drawn": table.drawn, "metrics": chosen, "rows": rows}
        return canonical_json(told)

    def _row_options(self, row: Row, table: Table) -> dict[str, Any]:
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
        model = self._row(row, table).model
        return {
            **told,
            "sampler": row.sampler,
            "nfe": self._evaluations(row.sampler),
            "images": None,
            "images_seen": model.images,
            "model": str(model),
            "ema": None if row.run is None else row.ema or self.experiment.runs[row.run].ema.half_life,
        }

    def _evaluations(self, sampler: str) -> int:
        chosen = self.experiment.samplers[sampler]
        return plugins.load("sampling", chosen.name)(**chosen.options).evaluations

    def training_codes(self, wildcards: Any) -> str:
        """The training code that is here now, by run: a table marks the runs that other code trained."""
        return canonical_json({row.name: self.training_code(row.name) for row in self._trained_rows(wildcards.table)})

    def tabulate_code(self, wildcards: Any) -> str:
        """Fingerprint of the table writers, and of the style of their charts."""
        return " ".join([self._code("tabulate"), *_beside_the_page("colours.css", "chart.css")])

    @property
    def tables(self) -> list[str]:
        """The tables, each under its Markdown name."""
        return [f"{RESULTS}/tables/{name}.md" for name in self.experiment.tables]

    def page_inputs(self, wildcards: Any) -> list[str]:
        """All that the page shows: tables, grids, curves, logs."""
        wanted = []
        for name, table in self.experiment.tables.items():
            wanted.append(f"{RESULTS}/tables/{name}.json")
            wanted += [f"{RESULTS}/grids/{row.model}/{row.sampler}/{table.seeds[0]}.npz" for row in self._rows(name)]
            wanted += [number.path for number in self._curve_numbers(name)]
        for run in self.experiment.runs:
            wanted += [f"{RESULTS}/runs/{run}/{file}" for file in ("run.yaml", "log.jsonl", "summary.json")]
        return list(dict.fromkeys(wanted))

    def _curve_numbers(self, name: str) -> Iterator[_Number]:
        """Yield the numbers of a table's curves: each snapshot of each row whose run has several."""
        table = self.experiment.tables[name]
        if table.curves is None:
            return
        metric = table.columns[table.curves.column].partition(".")[0]
        for row in self._trained_rows(name):
            snapshots = self.experiment.runs[row.name].snapshots
            for images in snapshots if len(snapshots) > 1 else ():
                point = Model(name=row.name, images=images, ema=row.model.ema)
                yield _Number(point, row.sampler, table.curves.seeds, metric)

    def page_options(self, wildcards: Any) -> str:
        """The whole config: the page shows it. But it says nothing of where inputs were downloaded and runs trained."""
        elsewhere = ("mirrors", "launch", "container")
        return canonical_json({key: value for key, value in self._document.items() if key not in elsewhere})

    def report_code(self, wildcards: Any) -> str:
        """Fingerprint of the page: its code, and the template and style sheet beside it."""
        metrics = [f"onestep.metrics.{metric.name}" for metric in self.experiment.metrics.values()]
        return " ".join([self._code("report", *metrics), *_beside_the_page("*.css", "*.jinja")])


def _beside_the_page(*patterns: str) -> list[str]:
    """Return fingerprints of templates and style sheets."""
    folder = Path(__file__).parent / "report"
    return [sha256_of_file(path)[:16] for pattern in patterns for path in sorted(folder.glob(pattern))]
