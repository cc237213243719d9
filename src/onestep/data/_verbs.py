"""The verb `prepare`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def prepare(*, dataset: Mapping[str, Any], source: Path, output: Path, workers: int | None = None) -> int:
    """Write a dataset archive in EDM's format, its card and its contact sheet.

    An interrupted preparation resumes; the same dataset gives the same bytes.

    Args:
        dataset: The reader and its options, as in config.yaml (JSON).
        source: The input file.
        output: The archive (.zip); card and contact sheet are written beside it (.json, .png).
        workers: Processes; without it one per core.
    """
    from onestep import components
    from onestep.checkpoints.digests import checked
    from onestep.data._archive import origin_of
    from onestep.data._archive import prepare as write_prepared
    from onestep.fingerprint import Fingerprints

    reader = components.build("data", dataset, source=source if source.is_dir() else checked(source))
    code = Fingerprints().of_stage("prepare", [("data", dataset["name"])])
    origin = origin_of(reader, source, options=dataset, code=code)
    write_prepared(reader, target=output, origin=origin, workers=workers or len(os.sched_getaffinity(0)))
    return 0
