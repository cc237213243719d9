"""Which file comes from which, and with which options: what the rules ask of config.yaml.

All paths are relative to the working directory, below results/. A *model* is a snapshot of a run, `{run}@{images}`, the
one chosen among them, `{run}@best-...`, or a teacher's name: `onestep.models` spells them. A stage's options are its
own keys of the config alone, spelled as canonical JSON, so that nothing else can rerun it; its code is the fingerprint
of what the stage's verb runs.
"""

from __future__ import annotations

from pathlib import Path

from onestep.config.reading import experiment_document, read_experiment
from onestep.config.sections import Experiment
from onestep.fingerprint import Fingerprints
from onestep.plan.backbones import Backbones
from onestep.plan.choices import Choices
from onestep.plan.class_embeddings import ClassEmbeddings
from onestep.plan.datasets import Datasets
from onestep.plan.features import Features
from onestep.plan.images import Images
from onestep.plan.inputs import Inputs
from onestep.plan.metrics import Metrics
from onestep.plan.numbers import Numbers
from onestep.plan.observations import Observations
from onestep.plan.page import Page
from onestep.plan.references import References
from onestep.plan.rows import Rows
from onestep.plan.site import Site
from onestep.plan.snapshots import Snapshots
from onestep.plan.tables import Tables
from onestep.plan.teachers import Teachers
from onestep.plan.training import Training

__all__ = ["Plan"]


class Plan:
    """The config as the rules see it, a part a stage; methods that take `wildcards` are input or params functions.

    Attributes:
        experiment: The config.
        source: Its file.
        site: Where rules run.
        inputs: What comes from outside.
        datasets: Their archives.
        class_embeddings: What a discriminator knows of the classes at first.
        training: The runs.
        teachers: What runs start from.
        images: What models draw.
        features: What is seen of images.
        observations: Images and features in one pass, where images are not kept.
        references: The real side of the numbers.
        metrics: The numbers.
        choices: The snapshots that they choose.
        tables: Numbers side by side.
        page: All of it.
    """

    def __init__(self, experiment: Experiment, *, source: str = "config.yaml", fingerprints: Fingerprints) -> None:
        self.experiment, self.source = experiment, source
        document = experiment_document(experiment)
        snapshots, rows = Snapshots(experiment), Rows(experiment)
        numbers = Numbers(experiment, rows=rows, snapshots=snapshots)
        self.site = Site(experiment.launch, container=experiment.container)
        self.inputs = Inputs(experiment, blocks=document["inputs"])
        self.datasets = Datasets(experiment, blocks=document["datasets"], inputs=self.inputs, fingerprints=fingerprints)
        backbones = Backbones(experiment, inputs=self.inputs, snapshots=snapshots)
        self.class_embeddings = ClassEmbeddings(
            experiment, inputs=self.inputs, backbones=backbones, fingerprints=fingerprints
        )
        self.training = Training(
            experiment,
            snapshots=snapshots,
            backbones=backbones,
            class_embeddings=self.class_embeddings,
            fingerprints=fingerprints,
        )
        self.teachers = Teachers(experiment, inputs=self.inputs, snapshots=snapshots, fingerprints=fingerprints)
        self.images = Images(experiment, blocks=document["samplers"], fingerprints=fingerprints)
        self.features = Features(
            experiment,
            blocks=document["features"],
            inputs=self.inputs,
            snapshots=snapshots,
            fingerprints=fingerprints,
        )
        self.observations = Observations(
            experiment, numbers=numbers, images=self.images, features=self.features, fingerprints=fingerprints
        )
        self.references = References(experiment, inputs=self.inputs)
        self.metrics = Metrics(
            experiment, blocks=document["metrics"], references=self.references, fingerprints=fingerprints
        )
        self.choices = Choices(experiment, snapshots=snapshots, numbers=numbers, fingerprints=fingerprints)
        self.tables = Tables(
            experiment,
            blocks=document["tables"],
            rows=rows,
            numbers=numbers,
            training=self.training,
            fingerprints=fingerprints,
        )
        self.page = Page(experiment, document=document, rows=rows, numbers=numbers, fingerprints=fingerprints)

    @classmethod
    def read(cls, config: str | Path) -> Plan:
        """Read and check a config.

        Raises:
            ConfigError: Something in it is wrong; one line a problem.
        """
        return cls(read_experiment(config), source=str(config), fingerprints=Fingerprints())
