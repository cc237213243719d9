"""Where files lie below results/ that several stages know of."""

from __future__ import annotations

from onestep.models import Model

RESULTS = "results"


def archive(dataset: str) -> str:
    """Return the images of a dataset."""
    return f"{RESULTS}/data/{dataset}.zip"


def teacher_weights(teacher: str) -> str:
    """Return the network of a teacher."""
    return weights(Model(name=teacher))


def weights(model: Model) -> str:
    """Return the network of a model."""
    return f"{RESULTS}/{model.weights}"


def summary(run: str) -> str:
    """Return what a run says of itself."""
    return f"{RESULTS}/runs/{run}/summary.json"
