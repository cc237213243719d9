"""How far each run is, and whether the code that trained it is the code that is here."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from onestep.files import read_json


def status_lines(runs: Mapping[str, int], *, codes: Mapping[str, str], results: Path, state: Path) -> Iterator[str]:
    """Yield one line a run.

    Args:
        runs: How many images each run is to see.
        codes: Fingerprint of each run's training code as it is here now.
        results: The results folder.
        state: Root of the work folders.
    """
    width = max(map(len, runs), default=0)
    for run, images in runs.items():
        summary = results / "runs" / run / "summary.json"
        said = _finished(summary, code=codes[run]) if summary.exists() else _under_way(state / run, images=images)
        yield f"{run:<{width}}  {said}"


def _finished(summary: Path, *, code: str) -> str:
    facts = read_json(summary)
    mark = "" if facts["codes"] == [code] else "; trained with other code than is here now"
    return f"finished, {facts['images_seen']:,} images in {facts['seconds']:,.0f} s{mark}"


def _under_way(folder: Path, *, images: int) -> str:
    """Return what the newest log of a run that is not published says."""
    logs = sorted(folder.glob("*/log.jsonl"), key=lambda path: path.stat().st_mtime)
    lines = logs[-1].read_text().splitlines() if logs else []
    if not lines:
        return "not begun"
    record = json.loads(lines[-1])
    losses = ", ".join(f"{phase} {value:.4g}" for phase, value in record["losses"].items() if value is not None)
    return f"at {record['images_seen']:,} of {images:,} images, {losses}"
