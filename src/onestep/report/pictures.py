"""Pictures inside the page as data URIs: sheets of generated images as PNG, charts as SVG."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from onestep import figures
from onestep.report import charts
from onestep.report.charts import Chart


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture as a data URI, with its size in px and its description."""

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
    height, image_width, channels = images[0].shape
    gap = max(1, image_width // 16)
    rows = -(-len(images) // columns)
    sheet = np.zeros((rows * (height + gap) - gap, columns * (image_width + gap) - gap, channels + 1), np.uint8)
    for index, image in enumerate(images):
        top, left = index // columns * (height + gap), index % columns * (image_width + gap)
        sheet[top : top + height, left : left + image_width, :channels] = image
        sheet[top : top + height, left : left + image_width, channels] = 255
    factor = max(1, -(-width // sheet.shape[1]))
    sheet = sheet.repeat(factor, axis=0).repeat(factor, axis=1)
    file = io.BytesIO()
    Image.fromarray(sheet).save(file, format="PNG", optimize=True)
    return Picture(uri=_uri("image/png", file.getvalue()), width=sheet.shape[1], height=sheet.shape[0], alt=alt)


def chart_picture(chart: Chart) -> Picture:
    """Return a chart with its description as a picture."""
    figure = charts.draw([chart])
    width, height = (round(96 * side) for side in figure.get_size_inches())
    return svg_picture(figures.svg(figure), width=width, height=height, alt=chart.description)


def svg_picture(svg: str, *, width: int, height: int, alt: str) -> Picture:
    """Return the text of an SVG file as a picture. A browser runs no script and loads no file of a picture."""
    return Picture(uri=_uri("image/svg+xml", svg.encode()), width=width, height=height, alt=alt)


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
