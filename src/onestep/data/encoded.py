"""The latents of another dataset: mean and deviation of each image by an autoencoder, in EDM2's format."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from onestep import components
from onestep.data.image_zip import ImageZip

__all__ = ["Encoded"]

_BLOCK = 16  # images that are encoded at once


class Encoded:
    """Each image of another dataset as a codec encodes it, not scaled: float32 [2 Z, H / f, W / f] (`LatentZip`).

    It is prepared from the archive of that dataset, the key `dataset` of its block. Training draws an image from mean
    and deviation, with other random numbers at each place in a run.

    Attributes:
        codec: What the latents depend on beside the pixels (`LatentCodec.origin`).
    """

    prepared_source: ClassVar[bool] = True
    latents: ClassVar[bool] = True
    parts: ClassVar[Mapping[str, str]] = {"codec": "autoencoders"}
    class_names: tuple[str, ...] = ()
    unreadable_share = 0.0

    def __init__(
        self,
        *,
        source: Path | str,
        codec: Mapping[str, Any],  # a choice of autoencoders/, as the `codec` of the runs that train on it
        mirrored: bool = False,  # each image and its mirror image, as two: DiT draws one of both (arXiv:2212.09748)
        codec_weights: Path | str | None = None,
    ) -> None:
        if codec_weights is None:
            raise ValueError("codec: got no weights, expected those of its input. Fix: give --codec")
        self._whole, self._turns = ImageZip(source=source), 2 if mirrored else 1
        block = {key: value for key, value in codec.items() if key != "input"}
        self._codec = components.build("autoencoders", block, weights=codec_weights)
        if self._whole.channels != self._codec.channels:
            expected = f"{self._codec.channels}, those of {codec_weights}"
            raise ValueError(f"{source}: got {self._whole.channels} channels, expected {expected}. Fix: another codec")
        if self._whole.resolution % self._codec.factor:
            expected = f"a multiple of {self._codec.factor}, for {codec_weights}"
            raise ValueError(f"{source}: got images of {self._whole.resolution} pixels, expected {expected}")
        self.resolution, self.channels = self._whole.resolution // self._codec.factor, self._codec.latent_channels
        self.classes, self.codec = self._whole.classes, dict(self._codec.origin)
        self._block: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self._whole) * self._turns

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        number, row = divmod(index, _BLOCK)
        if self._block is None or self._block[0] != number:
            rows = range(number * _BLOCK, min((number + 1) * _BLOCK, len(self)))
            self._block = number, self._encoded(rows)
        return self._block[1][row], self._whole[index // self._turns][1]

    def _encoded(self, rows: range) -> np.ndarray:
        """Return mean and deviation of the images `rows`, float32 [B, 2 Z, h, w]."""
        # Here, because a config is read without torch.
        import torch

        from onestep.arithmetic import computing, default_device

        device, images = default_device(), []
        for index in rows:
            number, turn = divmod(index, self._turns)
            pixels = self._whole[number][0]
            images.append(pixels[:, :, ::-1] if turn else pixels)
        with computing("float32", device=device):
            return self._codec.moments(torch.from_numpy(np.stack(images)).to(device)).cpu().numpy()
