"""What a discriminator knows of the classes at first: published tables, and those that are made of a dataset."""

from __future__ import annotations

from typing import Any

from onestep import components
from onestep.config.sections import Experiment
from onestep.fingerprint import Fingerprints
from onestep.plan.backbones import Backbones
from onestep.plan.inputs import Inputs
from onestep.plan.paths import RESULTS, archive


class ClassEmbeddings:
    """The section `class_embeddings`.

    Args:
        experiment: The config.
        inputs: The published tables.
        backbones: What the others are made with.
        fingerprints: Of the code that is here.
    """

    def __init__(
        self, experiment: Experiment, *, inputs: Inputs, backbones: Backbones, fingerprints: Fingerprints
    ) -> None:
        self._experiment, self._inputs = experiment, inputs
        self._backbones, self._fingerprints = backbones, fingerprints

    def path(self, name: str) -> str:
        """Return the file of a table."""
        source = self._experiment.class_embeddings[name].input
        return f"{RESULTS}/class_embeddings/{name}.safetensors" if source is None else self._inputs.path(source)

    def backbone(self, wildcards: Any) -> str:
        """The network whose features make a table of class embeddings."""
        return self._backbones.weights(self._experiment.class_embeddings[wildcards.class_embeddings].backbone)

    def data(self, wildcards: Any) -> str:
        """The images that make a table of class embeddings."""
        return archive(self._experiment.class_embeddings[wildcards.class_embeddings].dataset)

    def options(self, wildcards: Any) -> str:
        """How a table of class embeddings is made, as options of `onestep embed`."""
        table = self._experiment.class_embeddings[wildcards.class_embeddings]
        timm = self._experiment.backbones[table.backbone].timm
        return " ".join([f"--resolution {table.resolution}", *([] if timm is None else [f"--timm {timm}"])])

    def code(self, wildcards: Any) -> str:
        """Fingerprint of what makes tables of class embeddings."""
        classifiers = [f"onestep.classifiers.{name}" for name in components.choices("classifiers")]
        return self._fingerprints.fingerprint("onestep.cli:embed", plugins=classifiers)
