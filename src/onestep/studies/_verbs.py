"""The verb `study`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def study(*, study: Mapping[str, Any], name: str, files: Mapping[str, Sequence[Path]], output: Path) -> int:
    """Run a study: write its arrays, numbers, figure and verdict.

    Args:
        study: The study and its options, as in config.yaml (JSON).
        name: Name of the study in config.yaml.
        files: The files of each of its observables, by the names of the study (JSON).
        output: The folder that receives `{name}.npz`, `.json`, `.svg` and `.md`.
    """
    from onestep import components
    from onestep.studies._run import run_study

    built = components.build("studies", study)
    paths = {key: [Path(path) for path in group] for key, group in files.items()}
    findings = run_study(built, name=name, options=study, files=paths, folder=output)
    print(f"{name}: {findings.verdict}")
    return 0
