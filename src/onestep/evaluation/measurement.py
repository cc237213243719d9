"""Features of two files through a metric, into a JSON that says what was compared with what."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from onestep.archive import Arrays, read_arrays
from onestep.files import write_json
from onestep.metrics import Metric


def write_measurement(metric: Metric, *, name: str, generated: Path, real: Path, output: Path) -> None:
    """Measure one block of generated images.

    Args:
        metric: The metric.
        name: What the config calls it.
        generated: Features of generated images, `.../{model}/{sampler}/{seeds}.{features}.npz`.
        real: Features of the dataset, `.../{dataset}.{features}.npz`.
        output: The JSON to write.

    Raises:
        ValueError: The two files were made with different feature networks, or lack what the metric compares.
    """
    found, reference = read_arrays(generated), read_arrays(real)
    if found.about["weights_sha256"] != reference.about["weights_sha256"]:
        raise ValueError(
            f"{generated} and {real} were made with different weights of the feature network; extract both again"
        )
    available = {
        "generated": _array(found, "features", generated),
        "real": _array(reference, "features", real),
        "probabilities": found.arrays.get("probabilities"),
    }
    compared = {}
    for role in metric.compares:
        if available[role] is None:
            raise ValueError(
                f"{generated}: metric {name!r} needs class probabilities, and this feature network has none"
            )
        compared[role] = available[role]
    seeds, features, _ = generated.name.rsplit(".", 2)
    write_json(
        output,
        {
            "model": generated.parent.parent.name,
            "sampler": generated.parent.name,
            "seeds": seeds,
            "images": found.about["images"],
            "metric": name,
            "values": {key: float(value) for key, value in metric(**compared).items()},
            "features": features,
            "feature_weights_sha256": found.about["weights_sha256"],
            "reference": {
                "dataset": real.name.split(".")[0],
                "images": reference.about["images"],
                "sha256": reference.about["pixels_sha256"],
            },
        },
    )


def _array(source: Arrays, name: str, path: Path) -> np.ndarray:
    if name not in source.arrays:
        raise ValueError(f"{path}: holds no array {name!r}; expected what `onestep extract` writes")
    return source.arrays[name]
