"""Where the records of a training go beside log.jsonl: TensorBoard's event file, and Weights & Biases."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from onestep.config.run import to_document
from onestep.training.assembly import Training
from onestep.training.publication import spec_of


class Sink(Protocol):
    """It may raise anything; then it is not called again."""

    name: str

    def numbers(self, numbers: Mapping[str, float], *, images_seen: int) -> None:
        """Take numbers by name."""
        ...

    def image(self, pixels: np.ndarray, *, images_seen: int) -> None:
        """Take a grid of images, uint8 [H, W, C]."""
        ...

    def close(self) -> None:
        """Write what is left."""
        ...


class TensorBoard:
    """An event file in a folder; each start of a run adds one, which withdraws what came after its state.

    ImportError: There is no package tensorboard.
    """

    name = "TensorBoard"

    def __init__(self, folder: Path, *, images_seen: int) -> None:
        # Here, because the machine that trains may lack it.
        from torch.utils.tensorboard import SummaryWriter

        is_resumed = any(folder.glob("events.*"))
        self._writer = SummaryWriter(str(folder), purge_step=images_seen + 1 if is_resumed else None)

    def numbers(self, numbers: Mapping[str, float], *, images_seen: int) -> None:
        """Write scalars."""
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, images_seen)
        self._writer.flush()

    def image(self, pixels: np.ndarray, *, images_seen: int) -> None:
        """Write an image."""
        self._writer.add_image("samples", pixels, images_seen, dataformats="HWC")
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases, continued after a resume; WANDB_MODE=offline and its other variables hold.

    ImportError: There is no package wandb.
    """

    name = "Weights & Biases"

    def __init__(self, training: Training, *, project: str, folder: Path) -> None:
        import wandb

        self._image = wandb.Image
        self._run = wandb.init(
            project=project,
            name=training.name,
            id=f"{''.join(each if each.isalnum() else '-' for each in training.name)}-{spec_of(folder)}"[:64],
            resume="allow",
            dir=str(folder),
            config=to_document(training.run),
            settings=wandb.Settings(console="off"),
        )

    def numbers(self, numbers: Mapping[str, float], *, images_seen: int) -> None:
        """Log numbers."""
        self._log(numbers, images_seen=images_seen)

    def image(self, pixels: np.ndarray, *, images_seen: int) -> None:
        """Log an image."""
        self._log({"samples": self._image(pixels)}, images_seen=images_seen)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()

    def _log(self, values: Mapping[str, Any], *, images_seen: int) -> None:
        self._run.log(dict(values), step=images_seen)
