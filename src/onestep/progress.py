"""Progress bars of tqdm: with a terminal and without one."""

from __future__ import annotations

import contextlib
import io
import sys
from typing import Any, TextIO

from tqdm import tqdm


class Lines(io.TextIOBase):
    """A text stream on which each refresh of a progress bar is a line of its own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._last = stream, ""

    def write(self, text: str) -> int:
        """Write a refresh as a line unless it equals the last one."""
        line = text.strip()
        if line and line != self._last:
            self._last = line
            with contextlib.suppress(OSError):
                print(line, file=self._stream, flush=True)
        return len(text)


class Bar(tqdm):
    """A progress bar of tqdm: never above 100 %, and no time below zero where the clock was set back."""

    @property
    def format_dict(self) -> dict[str, Any]:
        """The numbers that are shown."""
        found: dict[str, Any] = super().format_dict
        total = found["total"]
        found["n"] = found["n"] if total is None else min(found["n"], total)
        found["initial"] = min(found["initial"], found["n"])
        found["elapsed"] = max(0.0, found["elapsed"])
        if found["rate"] is not None and found["rate"] <= 0:
            found["rate"] = None
        return found


def live(*, total: int, name: str, unit: str, initial: int = 0, shown: bool = True, unit_scale: bool = False) -> Bar:
    """Return a bar on standard error; without a terminal it is a line every 10 seconds."""
    on_terminal = sys.stderr.isatty()
    line = f"{{desc}}: {{percentage:.0f}}% {{n_fmt}}/{{total_fmt}} {unit} [{{rate_fmt}}, {{remaining}} left{{postfix}}]"
    return Bar(
        total=total,
        initial=initial,
        desc=name,
        unit=f" {unit}",
        unit_scale=unit_scale,
        disable=not shown,
        delay=0.01,
        mininterval=0.5 if on_terminal else 10.0,
        miniters=0,
        file=sys.stderr if on_terminal else Lines(sys.stderr),
        bar_format=None if on_terminal else line,
    )


def patient(*, name: str, total: int | None = None, shown: bool = True) -> Bar:
    """Return a bar of images that is shown after 10 seconds and then every 10, so that quick work prints nothing."""
    return Bar(total=total, desc=name, unit="image", mininterval=10, delay=10, disable=not shown)
