"""The real images of the results page: a dataset's card, and tiles of its contact sheet."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from onestep.files import read_json, regular_file

_CARD = {
    **dict.fromkeys(("images", "resolution", "channels", "classes"), int),
    "images_per_class": [int],
    "class_names?": [str],
}


@dataclass(frozen=True, kw_only=True)
class DatasetEvidence:
    """A prepared dataset: the numbers of its card, and some of its images, the classes in ascending order."""

    name: str
    images: int
    resolution: int  # px
    channels: int
    per_class: tuple[tuple[str, int], ...] = ()  # name and number of images of each class; empty without labels
    tiles: tuple[np.ndarray, ...] = ()  # uint8 [H, W, C]

    def spread(self, count: int) -> list[np.ndarray]:
        """Return at most `count` of the tiles, evenly spread over the classes."""
        shown = min(count, len(self.tiles))
        return [self.tiles[place * len(self.tiles) // shown] for place in range(shown)]


def read_dataset(card: Path, *, name: str) -> DatasetEvidence:
    """Read a dataset's card (`.json`) and the contact sheet beside it (`.png`). ValueError: One of them is damaged."""
    found = read_json(card, _CARD)
    counts = found["images_per_class"]
    names = found.get("class_names") or []
    names = names if len(names) == len(counts) else [str(label) for label in range(len(counts))]
    side = found["resolution"]
    return DatasetEvidence(
        name=name,
        images=found["images"],
        resolution=side,
        channels=found["channels"],
        per_class=tuple(zip(names, counts, strict=True)),
        tiles=tuple(_tiles(card.with_suffix(".png"), side=side)),
    )


def _tiles(path: Path, *, side: int) -> list[np.ndarray]:
    """Return the tiles of a contact sheet, uint8 [side, side, C]; the black rest of a row is none of them."""
    try:
        with Image.open(regular_file(path)) as sheet:
            pixels = np.asarray(sheet)
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError) as error:
        raise ValueError(f"{path}: got no picture ({error}). Fix: delete it to prepare the dataset again") from error
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    height, width = pixels.shape[:2]
    if pixels.dtype != np.uint8 or side < 1 or height % side or width % side or not height:
        found = f"{path}: got {width} x {height} pixels, expected multiples of {side}"
        raise ValueError(f"{found}. Fix: delete it to prepare the dataset again")
    tiles = [
        pixels[top : top + side, left : left + side] for top in range(0, height, side) for left in range(0, width, side)
    ]
    return [each for each in tiles if each.any()]
