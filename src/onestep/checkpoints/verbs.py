"""The verb `convert`."""

from __future__ import annotations

from pathlib import Path


def convert(*, source: Path, preconditioning: str = "edm", output: Path) -> int:
    """Convert a published checkpoint, or a run's snapshot, to a teacher.

    Args:
        source: A pickle of EDM's format, or a snapshot (.safetensors).
        preconditioning: The law of a pickle, `edm` or `d2o`; a snapshot holds its own.
        output: The weights (.safetensors); the architecture is written beside them (.yaml).
    """
    from onestep.checkpoints.conversion import convert_edm_pickle, convert_snapshot

    architecture = output.with_suffix(".yaml")
    if source.suffix == ".safetensors":
        convert_snapshot(source, weights=output, architecture=architecture)
    else:
        convert_edm_pickle(source, weights=output, architecture=architecture, preconditioning=preconditioning)
    return 0
