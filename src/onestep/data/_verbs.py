"""The verb `prepare`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def prepare(
    *, dataset: Mapping[str, Any], source: Path, codec: Path | None = None, output: Path, workers: int | None = None
) -> int:
    """Write a dataset archive in EDM's format, or that of EDM2 for latents, its card and its contact sheet.

    An interrupted preparation resumes; the same dataset gives the same bytes.

    Args:
        dataset: The reader and its options, as in config.yaml (JSON).
        source: The input file.
        codec: Weights of the dataset's codec, of one that encodes another dataset.
        output: The archive (.zip); card and contact sheet are written beside it (.json, .png).
        workers: Processes; without it one per core.
    """
    from onestep import components
    from onestep.checkpoints.digests import checked
    from onestep.data._archive import origin_of
    from onestep.data._archive import prepare as write_prepared
    from onestep.fingerprint import Fingerprints

    weights = {} if codec is None else {"codec_weights": codec}
    reader = components.build("data", dataset, source=source if source.is_dir() else checked(source), **weights)
    named = getattr(reader, "parts", {})
    others = [(family, dataset[key]["name"]) for key, family in named.items() if isinstance(dataset.get(key), Mapping)]
    code = Fingerprints().of_stage("prepare", [("data", dataset["name"]), *others])
    if codec is not None:
        workers = 1  # the network has the GPU, or all cores
    origin = origin_of(reader, source, options=dataset, code=code)
    write_prepared(reader, target=output, origin=origin, workers=workers or len(os.sched_getaffinity(0)))
    return 0
