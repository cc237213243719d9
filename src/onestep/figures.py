"""The style of all figures, and SVG files with the same bytes for the same figure.

Text is drawn as paths and the background is transparent, so a figure looks the same in a page, in a paper and in every
viewer; browsers recolour its ink in dark mode.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from onestep.escapes import markup

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#2b7fc3", "#7b828c", "#d0621b", "#1d9a6c", "#b85fa0", "#a87a10", "#4aa3c7", "#8068c0")
"""Colours with a contrast of at least 3 on white and on the page's dark background."""
INK, SOFT = "#16181d", "#5c6370"
_DARK = {INK: "#e8eaed", SOFT: "#a6adb8"}
_STYLE = {
    "svg.hashsalt": "onestep",
    "svg.fonttype": "path",
    "font.family": ["DejaVu Sans"],
    "font.size": 8.0,
    "axes.titlesize": 8.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": SOFT,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.labelcolor": SOFT,
    "axes.titlecolor": INK,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.color": SOFT,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.4,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "legend.borderaxespad": 0.2,
}


def svg(figure: Figure) -> str:
    """Return a figure as the text of an SVG file without date, with one style rule for dark mode."""
    file = io.StringIO()
    with style():
        absent = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=absent)
    text = file.getvalue()
    head, end, rest = text[text.index("<svg") :].partition(">")
    rules = "".join(
        f'[style*="{part}: {light}"]{{{part}:{dark}!important}}'
        for light, dark in _DARK.items()
        for part in ("fill", "stroke")
    )
    rest = markup(rest)
    return f"{head}{end}\n<style>@media (prefers-color-scheme:dark){{{rules}}}</style>{rest}"


@contextmanager
def style() -> Iterator[None]:
    """Draw in the style of these figures, whatever the settings of the user, and restore those after."""
    from cycler import cycler
    from matplotlib import style as styles

    with styles.context(["default", {**_STYLE, "axes.prop_cycle": cycler(color=COLOURS)}]):
        yield
