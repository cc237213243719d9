"""The verbs `convert` and `average`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def convert(
    *,
    source: Path,
    preconditioning: str | None = None,
    codec: Mapping[str, Any] | None = None,
    without_classes: bool = False,
    output: Path,
) -> int:
    """Convert a published checkpoint, or a run's snapshot, to a teacher; an autoencoder to the network of a codec.

    Args:
        source: A pickle of EDM's format, a snapshot (.safetensors), a state dict of DiT or SiT (.pt, .pth, .bin,
            .safetensors), or a folder of diffusers with a UNet2DModel, a DiT or an AutoencoderKL.
        preconditioning: The law of a pickle, `edm` (default) or `d2o`; of a state dict, `ddpm` (DiT) or `flow` (SiT);
            that of a folder is `ddpm`, and a snapshot holds its own.
        codec: What decodes the images of a network on latents, as `codec` of a teacher in config.yaml (JSON).
        without_classes: Take a DiT or SiT with classes as its network for no class, for runs without classes.
        output: The weights (.safetensors); the architecture is written beside them (.yaml).
    """
    from onestep.checkpoints.conversion import (
        convert_edm_pickle,
        convert_folder,
        convert_snapshot,
        convert_state_dict,
        laws_of_snapshot,
    )
    from onestep.checkpoints.dit_weights import holds_dit

    architecture = output.with_suffix(".yaml")
    is_folder = source.is_dir() or source.suffix == ".folder"
    if not is_folder and (source.suffix in (".pt", ".pth", ".bin") or holds_dit(source)):
        convert_state_dict(
            source,
            weights=output,
            architecture=architecture,
            preconditioning=preconditioning,
            codec=codec,
            without_classes=without_classes,
        )
        return 0
    laws: tuple[str, ...] = ("ddpm",) if is_folder else ("edm", "d2o")
    if preconditioning is not None and source.suffix == ".safetensors" and not is_folder:
        laws = laws_of_snapshot(source)
    if preconditioning not in (None, *laws):
        raise ValueError(f"--preconditioning: got {preconditioning!r}, expected {' or '.join(laws)} for {source}")
    if is_folder:
        convert_folder(source, weights=output, architecture=architecture, codec=codec, without_classes=without_classes)
    elif source.suffix == ".safetensors":
        convert_snapshot(
            source, weights=output, architecture=architecture, codec=codec, without_classes=without_classes
        )
    elif without_classes:
        expected = "a file or folder of a DiT or SiT"
        raise ValueError(f"--without-classes: got {source}, expected {expected}. Fix: remove --without-classes")
    else:
        law = preconditioning or "edm"
        convert_edm_pickle(source, weights=output, architecture=architecture, preconditioning=law, codec=codec)
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
