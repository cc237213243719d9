"""Features of two files through a metric, into a JSON that says what was compared with what."""

from __future__ import annotations

from pathlib import Path

from onestep.archive import read_arrays
from onestep.evaluation.references import features_of, read_reference
from onestep.files import write_json
from onestep.metrics import Metric


def write_measurement(metric: Metric, *, name: str, generated: Path, real: Path, output: Path) -> None:
    """Measure one block of generated images.

    Args:
        metric: The metric.
        name: What the config calls it.
        generated: Features of generated images, `.../{model}/{sampler}/{seeds}.{features}.npz`; or those of a dataset,
            `features/{dataset}.{features}.npz`, which are then held against a reference.
        real: Features of the dataset, `.../{dataset}.{features}.npz`, or what `read_reference` reads beside them; for a
            metric of generated images alone it may be `generated` again, and then the number has no reference.
        output: The JSON to write.

    Raises:
        ValueError: The two files were made with different feature networks, or lack what the metric compares.
    """
    found = read_arrays(generated)
    features = features_of(found, path=generated)
    reference = None
    if "real" in metric.compares or real != generated:
        reference = read_reference(real, width=features.shape[1], takes_statistics=metric.takes_statistics)
        refuse_other_weights(found.about["weights_sha256"], reference.weights_sha256, generated=generated, real=real)
    available = {
        "generated": features,
        "real": None if reference is None else reference.real,
        "probabilities": found.arrays.get("probabilities"),
    }
    compared = {}
    for role in metric.compares:
        if available[role] is None:
            raise ValueError(
                f"{generated}: metric {name!r} needs class probabilities, and this feature network has none"
            )
        compared[role] = available[role]
    try:
        values = metric(**compared)
    except ValueError as error:
        against = "" if reference is None else f" against {real}"
        raise ValueError(f"{generated}{against}: {error}") from error
    write_json(
        output,
        {
            **_subject(generated),
            "images": found.about["images"],
            "metric": name,
            "values": {key: float(value) for key, value in values.items()},
            "features": generated.name.rsplit(".", 2)[1],
            "feature_weights_sha256": found.about["weights_sha256"],
            "precision": found.about["network"].get("precision", "float32"),
            "reference": None if reference is None else dict(reference.facts),
        },
    )


def refuse_other_weights(ours: str, theirs: str | None, *, generated: Path, real: Path) -> None:
    """Refuse features of two networks, where both are known.

    Raises:
        ValueError: The digests of their weights differ.
    """
    if theirs not in (None, ours):
        raise ValueError(
            f"{generated} and {real} were made with different weights of the feature network; extract both again"
        )


def _subject(path: Path) -> dict[str, str]:
    """Return whose features a file holds, by where it is."""
    first = path.name.rsplit(".", 2)[0]
    if path.parent.name == "features":
        return {"dataset": first}
    return {"model": path.parent.parent.name, "sampler": path.parent.name, "seeds": first}
