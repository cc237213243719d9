"""Which file comes from which, and with which options: what the rules ask of config.yaml.

All paths are relative to the working directory, below results/. A *model* is a snapshot of a run, `{run}@{images}`, or
a teacher's name. A stage's options are its own keys of the config alone, spelled as canonical JSON, so that nothing
else can rerun it; its code is the fingerprint of what the stage's verb runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onestep import plugins
from onestep.config import Experiment, experiment_document, read_experiment, run_document
from onestep.files import canonical_json, sha256_of_file
from onestep.fingerprint import Fingerprints
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
    """A row of a table: a model through a sampler."""

    name: str
    model: str
    sampler: str
    images_seen: int | None
    label: str
    published: Mapping[str, float]


class Plan:
    """The config as the rules see it; methods that take `wildcards` are input or params functions."""

    def __init__(self, experiment: Experiment, *, fingerprints: Fingerprints) -> None:
        self.experiment = experiment
        self._document = experiment_document(experiment)
        self._fingerprints = fingerprints

    @classmethod
    def read(cls, config: str | Path) -> Plan:
        """Read and check a config.

        Raises:
            ConfigError: Something in it is wrong; one line a problem.
        """
        return cls(read_experiment(config), fingerprints=Fingerprints())

    def _code(self, verb: str, *loaded: str) -> str:
        return self._fingerprints.fingerprint(f"onestep.cli:{verb}", plugins=loaded)

    def _block(self, section: str, name: str) -> dict[str, Any]:
        """Return a component's name and options as the config has them, references to other sections left out."""
        block = self._document[section][name]
        return {key: value for key, value in block.items() if key not in ("input", "run", "features")}

    # Inputs and data

    def fetch_source(self, wildcards: Any) -> str:
        """Where an input comes from."""
        source = self._document["inputs"][wildcards.input]
        return canonical_json({key: value for key, value in source.items() if value is not None and key != "licence"})

    def _input(self, name: str) -> str:
        source = self.experiment.inputs[name]
        return f"{RESULTS}/inputs/{name}/{Path(source.path or source.file).name}"

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
                snapshots=[self._snapshot(name, images) for images in run.snapshots],
                code=self.training_code(name) if follows else "",
            )

    def training_code(self, run: str) -> str:
        """Return the fingerprint of the code that would train a run now."""
        return training_code(run_document(self.experiment, run), fingerprints=self._fingerprints)

    def _snapshot(self, run: str, images: int) -> str:
        return f"{RESULTS}/runs/{run}/snapshots/{images}.safetensors"

    def _last_snapshot(self, run: str) -> str:
        return self._snapshot(run, self.experiment.runs[run].snapshots[-1])

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

    def convert_code(self, wildcards: Any) -> str:
        """Fingerprint of the conversion."""
        return self._code("convert")

    # Samples and features

    def model_weights(self, wildcards: Any) -> str:
        """The network of a model."""
        run, _, images = wildcards.model.partition("@")
        return self._snapshot(run, int(images)) if images else f"{RESULTS}/teachers/{run}.safetensors"

    def sampler_options(self, wildcards: Any) -> str:
        """The sampler and its options."""
        return canonical_json(self._block("samplers", wildcards.sampler))

    def sample_code(self, wildcards: Any) -> str:
        """Fingerprint of the sampler, the networks and what turns them into pixels."""
        networks = [f"onestep.networks.{name}" for name in self._networks_of(wildcards.model.partition("@")[0])]
        return self._code("sample", f"onestep.sampling.{self.experiment.samplers[wildcards.sampler].name}", *networks)

    def _networks_of(self, model: str) -> Iterable[str]:
        """Return the network files a run or teacher may be built from; one, unless only its pickle knows."""
        if model in self.experiment.teachers:
            run = self.experiment.teachers[model].run
            return plugins.choices("networks") if run is None else self._networks_of(run)
        described = self.experiment.runs[model]
        return [described.network.name] if described.network is not None else self._networks_of(described.teacher)

    def extractor_weights(self, wildcards: Any) -> str:
        """The weights of a feature network."""
        extractor = self.experiment.features[wildcards.features]
        return self._input(extractor.input) if extractor.input is not None else self._last_snapshot(extractor.run)

    def extractor_options(self, wildcards: Any) -> str:
        """The feature network and its options."""
        return canonical_json(self._block("features", wildcards.features))

    def extract_code(self, wildcards: Any) -> str:
        """Fingerprint of the feature network."""
        classifiers = [f"onestep.classifiers.{name}" for name in plugins.choices("classifiers")]
        return self._code(
            "extract", f"onestep.features.{self.experiment.features[wildcards.features].name}", *classifiers
        )

    # Numbers, tables, page

    def generated_features(self, wildcards: Any) -> str:
        """The features a metric looks at."""
        features = self.experiment.metrics[wildcards.metric].features
        return f"{RESULTS}/features/{wildcards.model}/{wildcards.sampler}/{wildcards.seeds}.{features}.npz"

    def real_features(self, wildcards: Any) -> str:
        """The features of the dataset of the table that shows the model."""
        features = self.experiment.metrics[wildcards.metric].features
        return f"{RESULTS}/features/{self._dataset_of(wildcards.model)}.{features}.npz"

    def _dataset_of(self, model: str) -> str:
        name = model.partition("@")[0]
        if name in self.experiment.runs:
            return self.experiment.runs[name].dataset
        return next(
            table.dataset for table in self.experiment.tables.values() for row in table.rows if row.teacher == name
        )

    def metric_options(self, wildcards: Any) -> str:
        """The metric and its options."""
        return canonical_json(self._block("metrics", wildcards.metric))

    def measure_code(self, wildcards: Any) -> str:
        """Fingerprint of the metric."""
        return self._code("measure", f"onestep.metrics.{self.experiment.metrics[wildcards.metric].name}")

    def _rows(self, table: str) -> Iterator[RowPlan]:
        for row in self.experiment.tables[table].rows:
            images = None if row.run is None else self.experiment.runs[row.run].images
            name = row.run or row.teacher
            yield RowPlan(
                name=name,
                model=name if images is None else f"{name}@{images}",
                sampler=row.sampler,
                images_seen=images,
                label=row.label or name,
                published=row.published,
            )

    def table_metrics(self, wildcards: Any) -> list[str]:
        """Every number of a table."""
        table = self.experiment.tables[wildcards.table]
        metrics = dict.fromkeys(source.partition(".")[0] for source in table.columns.values())
        return [
            f"{RESULTS}/metrics/{row.model}/{row.sampler}/{seeds}.{metric}.json"
            for row in self._rows(wildcards.table)
            for seeds in table.seeds
            for metric in metrics
        ]

    def _trained_rows(self, table: str) -> Iterator[RowPlan]:
        return (row for row in self._rows(table) if row.images_seen is not None)

    def table_summaries(self, wildcards: Any) -> list[str]:
        """What each run of a table says of itself."""
        return list(
            dict.fromkeys(f"{RESULTS}/runs/{row.name}/summary.json" for row in self._trained_rows(wildcards.table))
        )

    def table_options(self, wildcards: Any) -> str:
        """A table's layout, the metrics of its columns, and its rows."""
        table = self.experiment.tables[wildcards.table]
        metrics = dict.fromkeys(source.partition(".")[0] for source in table.columns.values())
        rows = [
            {
                "run": row.name,
                "sampler": row.sampler,
                "label": row.label,
                "nfe": self._evaluations(row.sampler),
                "images_seen": row.images_seen,
                "snapshot": row.model,
                "published": dict(row.published),
            }
            for row in self._rows(wildcards.table)
        ]
        layout = {
            key: value
            for key, value in self._document["tables"][wildcards.table].items()
            if key not in ("rows", "curves")
        }
        chosen = {metric: {"name": self.experiment.metrics[metric].name} for metric in metrics}
        return canonical_json({"name": wildcards.table, "layout": layout, "metrics": chosen, "rows": rows})

    def _evaluations(self, sampler: str) -> int:
        chosen = self.experiment.samplers[sampler]
        return plugins.load("sampling", chosen.name)(**chosen.options).evaluations

    def training_codes(self, wildcards: Any) -> str:
        """The training code that is here now, by run: a table marks the runs that other code trained."""
        return canonical_json({row.name: self.training_code(row.name) for row in self._trained_rows(wildcards.table)})

    def tabulate_code(self, wildcards: Any) -> str:
        """Fingerprint of the table writers."""
        return self._code("tabulate")

    @property
    def tables(self) -> list[str]:
        """The tables, each under its Markdown name."""
        return [f"{RESULTS}/tables/{name}.md" for name in self.experiment.tables]

    def page_inputs(self, wildcards: Any) -> list[str]:
        """All that the page shows: tables, grids, curves, logs."""
        wanted = []
        for name, table in self.experiment.tables.items():
            wanted.append(f"{RESULTS}/tables/{name}.json")
            wanted += [f"{RESULTS}/samples/{row.model}/{row.sampler}/{table.seeds[0]}.npz" for row in self._rows(name)]
            wanted += self._curve_points(name)
        for run in self.experiment.runs:
            wanted += [f"{RESULTS}/runs/{run}/{file}" for file in ("run.yaml", "log.jsonl", "summary.json")]
        return list(dict.fromkeys(wanted))

    def _curve_points(self, name: str) -> Iterator[str]:
        """Yield the numbers of a table's curves: each snapshot of each row whose run has several."""
        table = self.experiment.tables[name]
        if table.curves is None:
            return
        metric = table.columns[table.curves.column].partition(".")[0]
        for row in self._trained_rows(name):
            snapshots = self.experiment.runs[row.name].snapshots
            for images in snapshots if len(snapshots) > 1 else ():
                yield f"{RESULTS}/metrics/{row.name}@{images}/{row.sampler}/{table.curves.seeds}.{metric}.json"

    def page_options(self, wildcards: Any) -> str:
        """The whole config: the page shows it."""
        return canonical_json(self._document)

    def report_code(self, wildcards: Any) -> str:
        """Fingerprint of the page: its code, and the template and style sheet beside it."""
        metrics = [f"onestep.metrics.{metric.name}" for metric in self.experiment.metrics.values()]
        beside = sorted(
            path for path in (Path(__file__).parent / "report").iterdir() if path.suffix in (".jinja", ".css")
        )
        return " ".join([self._code("report", *metrics), *(sha256_of_file(path)[:16] for path in beside)])
