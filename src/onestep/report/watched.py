"""The newest grid and number of runs that still train, for the page."""

from __future__ import annotations

import base64
import functools
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from onestep.files import read_json
from onestep.records import Watched, found_at, newest_watched
from onestep.results import Results


@dataclass(frozen=True, kw_only=True)
class WatchedRun:
    """A run that is not finished: its grid as a data URI, empty if it is damaged, with its size in px; its number."""

    name: str
    images: int  # seen by the snapshot of the grid
    uri: str
    width: int
    height: int
    number: str  # such as "fid 2.31 at 1,000,000 images"; empty for none

    @property
    def alt(self) -> str:
        """The description of the picture."""
        return f"Images by {self.name} after {self.images:,} images"


def watched_runs(layout: Results, runs: Iterable[str]) -> Iterator[WatchedRun]:
    """Yield those of `runs` that have a grid and no summary yet, or one of fewer images: a run that grows."""
    for run in runs:
        seen, summary = newest_watched(layout.run(run)), layout.summary(run)
        finished, _ = found_at(summary, functools.partial(read_json, shape={"images_seen": int}))
        if seen.grid is None or (summary.exists() and (finished is None or seen.grid[0] <= finished["images_seen"])):
            continue
        images, path = seen.grid
        content, _ = found_at(path, _read_picture)
        uri, width, height = content or ("", 0, 0)
        yield WatchedRun(name=run, images=images, uri=uri, width=width, height=height, number=_number(seen))


def _read_picture(path: Path) -> tuple[str, int, int]:
    content = path.read_bytes()
    with Image.open(io.BytesIO(content), formats=["PNG"]) as picture:
        picture.load()
        return f"data:image/png;base64,{base64.b64encode(content).decode()}", picture.width, picture.height


def _number(seen: Watched) -> str:
    if seen.number is None:
        return ""
    metric, _, value, images = seen.number
    return f"{metric} {value:.4g} at {images:,} images"
