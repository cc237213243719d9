"""Where files lie below results/ that several stages know of."""

from __future__ import annotations

from onestep.models import Model

RESULTS = "results"


def archive(dataset: str) -> str:
    """Return the images of a dataset."""
    return f"{RESULTS}/data/{dataset}.zip"


def weights(model: Model) -> str:
    """Return the network of a model."""
    return f"{RESULTS}/{model.weights}"
