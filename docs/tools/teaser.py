"""Draws the README's picture: images of the demo's models for the same seeds, and real ones.

Usage, after `make demo`: python docs/tools/teaser.py demo/results docs/images/digits.png
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import matplotlib.figure
import numpy as np

from onestep.data.image_zip import ImageZip
from onestep.results import Results

COLUMNS, LINES = 12, 2
SHOWN = {
    "Teacher in 35 evaluations": ("digits_edm@150000", "heun"),
    "Teacher in one": ("digits_edm@150000", "one_step"),
    "D2O-F in one": ("digits_d2o_f@40000", "one_step"),
}
_WHITE = 255
_INK = "#16181d"


def panels(results: Results) -> Mapping[str, np.ndarray]:
    """Return the images of each panel by its title, uint8 [N, H, W]: the first seeds of each model, and real images."""
    count = COLUMNS * LINES
    found = {}
    for title, (model, sampler) in SHOWN.items():
        with np.load(results.grid(model, sampler, "0-1999")) as grid:
            found[title] = grid["pixels"][:count, :, :, 0]
    pixels, _ = ImageZip(source=results.data("digits")).read_all()
    # Evenly spaced, because the archive is sorted by class.
    return found | {"Real images": pixels[np.linspace(0, len(pixels) - 1, count).round().astype(int), 0]}


def sheet(images: np.ndarray, gap: int = 2) -> np.ndarray:
    """Return images uint8 [N, H, W] in lines of `COLUMNS`, with white gaps in pixels, as one uint8 [H, W]."""
    high, wide = images.shape[1:]
    page = np.full((LINES * (high + gap) - gap, COLUMNS * (wide + gap) - gap), _WHITE, np.uint8)
    for index, image in enumerate(images):
        top, left = index // COLUMNS * (high + gap), index % COLUMNS * (wide + gap)
        page[top : top + high, left : left + wide] = image
    return page


def draw(results: Results, output: Path) -> None:
    """Write the picture (PNG): one panel above the other, each with its title on the left."""
    shown = panels(results)
    figure = matplotlib.figure.Figure(figsize=(8.4, 3.9), dpi=125, facecolor="white")
    for axes, (title, images) in zip(figure.subplots(len(shown)), shown.items(), strict=True):
        axes.imshow(sheet(images), cmap="gray", vmin=0, vmax=_WHITE, interpolation="nearest")
        axes.set_axis_off()
        axes.text(-0.02, 0.5, title, transform=axes.transAxes, ha="right", va="center", color=_INK, fontsize=11)
    figure.subplots_adjust(left=0.27, right=0.995, top=0.99, bottom=0.01, hspace=0.08)
    figure.savefig(output, metadata={"Software": None})


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    draw(Results(Path(sys.argv[1])), Path(sys.argv[2]))
