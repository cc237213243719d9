"""Progress bars of tqdm where standard error is no terminal."""

from __future__ import annotations

import io
from typing import TextIO


class Lines(io.TextIOBase):
    """A text stream on which each refresh of a progress bar is a line of its own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._last = stream, ""

    def write(self, text: str) -> int:
        """Write a refresh as a line unless it equals the last one."""
        line = text.strip()
        if line and line != self._last:
            self._last = line
            print(line, file=self._stream, flush=True)
        return len(text)
