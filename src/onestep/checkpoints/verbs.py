"""The verbs `convert` and `average`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def convert(*, source: Path, preconditioning: str | None = None, output: Path) -> int:
    """Convert a published checkpoint, or a run's snapshot, to a teacher.

    Args:
        source: A pickle of EDM's format, a snapshot (.safetensors), or a folder of diffusers with a UNet2DModel.
        preconditioning: The law of a pickle, `edm` (default) or `d2o`; that of a folder is `ddpm`, and a snapshot holds
            its own.
        output: The weights (.safetensors); the architecture is written beside them (.yaml).
    """
    from onestep.checkpoints.conversion import convert_edm_pickle, convert_folder, convert_snapshot, laws_of_snapshot

    architecture = output.with_suffix(".yaml")
    is_folder = source.is_dir() or source.suffix == ".folder"
    laws: tuple[str, ...] = ("ddpm",) if is_folder else ("edm", "d2o")
    if preconditioning is not None and source.suffix == ".safetensors" and not is_folder:
        laws = laws_of_snapshot(source)
    if preconditioning not in (None, *laws):
        raise ValueError(f"--preconditioning: got {preconditioning!r}, expected {' or '.join(laws)} for {source}")
    if is_folder:
        convert_folder(source, weights=output, architecture=architecture)
    elif source.suffix == ".safetensors":
        convert_snapshot(source, weights=output, architecture=architecture)
    else:
        convert_edm_pickle(source, weights=output, architecture=architecture, preconditioning=preconditioning or "edm")
    return 0


def average(*, snapshots: Sequence[Path], std: float, output: Path) -> int:
    """Make a further average of a training from those with power-function profiles that it kept (EDM2).

    It ends at the latest of the snapshots. The more there are, the closer it is to one that the training had kept.

    Args:
        snapshots: Snapshots of averages that `ema: {power: [0.05, 0.1]}` of a run keeps (.safetensors).
        std: Relative standard deviation of the average: 0.08 is 8 % of the training so far.
        output: Its weights (.safetensors).
    """
    from onestep.checkpoints.post_hoc import write_average

    write_average(snapshots, output, std=std)
    return 0
