"""Where files lie below results/ that several stages know of."""

from __future__ import annotations

from onestep.models import Model
from onestep.results import Results

RESULTS = "results"


def archive(dataset: str) -> str:
    """Return the images of a dataset."""
    return f"{RESULTS}/data/{dataset}.zip"


def weights(model: Model) -> str:
    """Return the network of a model."""
    return str(Results().weights(model))
