"""Images beside each other: contact sheets as data URIs, and the samples of a table as one picture."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from onestep.figures import INK, style
from onestep.sheets import tiled

_MOST_ACROSS = 6


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Images, uint8 [H, W, C], under one name. `key`: the index of a table's row, or the name of a dataset."""

    key: int | str
    name: str
    images: Sequence[np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Panels:
    """The panels of a table, of the same number of columns, so that all images have one size; their seeds."""

    panels: tuple[Panel, ...]
    columns: int
    seeds: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture as a data URI, with its size in px, 0 for its own, and its description."""

    uri: str
    width: int
    height: int
    alt: str


def shared_seeds(samples: Iterable[Mapping[int, np.ndarray]], *, count: int) -> list[int]:
    """Return the first `count` seeds that every row with images has, ascending."""
    drawn = [set(each) for each in samples if each]
    return sorted(set.intersection(*drawn))[:count] if drawn else []


def contact_sheet(images: Sequence[np.ndarray], *, columns: int, width: int, alt: str) -> Picture:
    """Return images, uint8 [H, W, C], with transparent gaps, enlarged by a whole factor to at least `width` px."""
    sheet = sheet_of(images, columns=columns)
    factor = max(1, -(-width // sheet.shape[1]))
    sheet = sheet.repeat(factor, axis=0).repeat(factor, axis=1)
    file = io.BytesIO()
    Image.fromarray(sheet).save(file, format="PNG")
    uri = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    return Picture(uri=uri, width=sheet.shape[1], height=sheet.shape[0], alt=alt)


def sheet_of(images: Sequence[np.ndarray], *, columns: int) -> np.ndarray:
    """Return images, uint8 [H, W, C], in rows with transparent gaps: uint8 [H, W, C + 1]."""
    height, width, _ = images[0].shape
    opaque = np.full((height, width, 1), 255, np.uint8)
    with_alpha = [np.concatenate([image, opaque], axis=2) for image in images]
    return tiled(with_alpha, columns=columns, gap=max(1, width // 16), ground=0)


def draw_samples(path: Path, drawn: Panels) -> None:
    """Write the panels of a table as one PNG, at most six in a row; without panels, one line of text."""
    from matplotlib.figure import Figure

    count = max(1, len(drawn.panels))
    across = count if count <= _MOST_ACROSS else 4
    down = math.ceil(count / across)
    with style():
        figure = Figure(figsize=(2.6 * across, 2.85 * down), dpi=120, layout="constrained", facecolor="white")
        for axes, panel in zip(figure.subplots(down, across, squeeze=False).flat, drawn.panels, strict=False):
            axes.imshow(_rgba(sheet_of(panel.images, columns=drawn.columns)), interpolation="nearest")
            axes.set_title(panel.name, fontsize=9)
        for axes in figure.axes:
            axes.set_axis_off()
        if not drawn.panels:
            figure.text(0.5, 0.5, "No images yet.", color=INK, ha="center")
        figure.savefig(path, format="png", metadata={"Software": None})


def _rgba(sheet: np.ndarray) -> np.ndarray:
    return sheet if sheet.shape[2] == 4 else sheet[..., [0, 0, 0, 1]]
