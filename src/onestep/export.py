"""A one-step generator for publication: one self-contained file of weights and a model card."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from onestep import components
from onestep.checkpoints.snapshot import read_snapshot
from onestep.escapes import markdown, one_line
from onestep.files import read_json, regular_file, replacing, sha256_of_file, write_text
from onestep.records import read_run_config, read_summary
from onestep.report.table import recorded_digests
from onestep.shapes import misfit

_ROW = {
    **dict.fromkeys(("snapshot", "sampler"), (str, None)),
    "nfe": (int, None),
    "metrics": {str: (float, None)},
    "show": str,
}
_WEIGHTS = "generator.safetensors"
_SHOWN = {
    "mean": "Each number is the mean over its blocks of seeds.",
    "first": "Each number is that of the first block of seeds.",
    "best": "Each number is the best of its blocks of seeds, a biased estimate.",
}
_USE = """\
from onestep.networks import load_denoiser
from onestep.sampling import generate
from onestep.sampling.one_step import OneStep

generator = load_denoiser("generator.safetensors")
samples = next(generate(generator, OneStep({sigma}), seeds=range(16), batch=16))
samples.pixels  # uint8 [16, {size}, {size}, {channels}]"""


def export(weights: Path, *, run: Path, table: Path | None, licence: str, folder: Path) -> None:
    """Write `generator.safetensors`, a snapshot of a run's folder, and a model card `README.md` to `folder`.

    The card has the snapshot's numbers of `table`, a tables/{table}.json, or none. Networks fine-tuned from EDM's
    checkpoints stay under the licence CC BY-NC-SA 4.0.

    Raises:
        ValueError: The run's objective does not train a one-step generator, or the table has no row of the snapshot.
    """
    if one_line(licence) != licence or not licence:
        raise ValueError(f"--licence: got {licence!r}, expected one line without control characters")
    config = read_snapshot(regular_file(weights)).config
    if found := misfit(config, {"name": str, "img_resolution": int, "img_channels": int}):
        raise ValueError(f"{weights}: {found}. Fix: choose a snapshot of a generator")
    _, document = read_run_config(run / "run.yaml")
    if found := misfit(document, {"objective": {"name": str}, "dataset": str}):
        raise ValueError(f"{run / 'run.yaml'}: {found}. Fix: resolve the run again")
    summary = read_summary(run / "summary.json", run=document["run"], keys=("parameters", "frozen_share"))
    objective = document["objective"]
    if components.outline("objectives", objective["name"]).samples_in != 1:
        raise ValueError(
            f"{run}: got objective {objective['name']}, expected one that trains a one-step generator. "
            "Fix: choose the run of such an objective"
        )
    rows = [] if table is None else _rows(table, snapshot=f"{document['run']}@{weights.stem}")
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / _WEIGHTS) as temporary:
        shutil.copyfile(weights, temporary)
    lines = _card(config, document, summary=summary, rows=rows, licence=licence, weights=weights)
    write_text(folder / "README.md", "\n".join(lines) + "\n")


def _rows(table: Path, *, snapshot: str) -> list[Mapping[str, Any]]:
    rows = read_json(table, [_ROW])
    recorded = recorded_digests(table)
    if table.name in recorded and sha256_of_file(table) != recorded[table.name]:
        raise ValueError(f"{table}: got another content than was written. Fix: delete it to make the table again")
    found = [row for row in rows if row["snapshot"] == snapshot]
    if not found:
        known = ", ".join(dict.fromkeys(row["snapshot"] for row in rows if row["snapshot"]))
        raise ValueError(f"{table}: got rows of {known}, expected one of {snapshot}. Fix: choose one, or omit --table")
    return found


def _card(
    config: Mapping[str, Any],
    document: Mapping[str, Any],
    *,
    summary: Mapping[str, Any],
    rows: list[Mapping[str, Any]],
    licence: str,
    weights: Path,
) -> Iterator[str]:
    """Yield the lines of the card: front matter of model hubs, description, use, numbers, run.yaml."""
    objective = document["objective"]
    size, channels = config["img_resolution"], config["img_channels"]
    conditioning = f"{config['label_dim']} classes" if config.get("label_dim") else "unconditional"
    sigma = f"sigma={objective['sigma']}" if "sigma" in objective else ""
    teacher = f", from the diffusion model {document['teacher']}" if document.get("teacher") else ""
    head = yaml.safe_dump({"license": licence}, allow_unicode=True, width=10_000).rstrip()
    yield from ("---", head, f"tags: [one-step, {one_line(objective['name'])}]", "---", "")
    yield from (f"# {markdown(document['run'])}", "")
    images = weights.stem.partition("-")[0]
    images = f"{int(images):,}" if images.isdecimal() else "some"
    yield (
        f"A one-step image generator, {channels} x {size} x {size}, {conditioning}: {config['name']} with "
        f"{summary['parameters']:,} parameters, {100 * summary['frozen_share']:.1f} % of them frozen, trained on "
        f"{images} images of {markdown(document['dataset'])} with objective "
        f"{objective['name']}{teacher}."
    )
    yield from ("", "```python", _USE.format(sigma=sigma, size=size, channels=channels), "```", "")
    if rows:
        yield from _numbers(rows)
    yield from (f"SHA-256 of `{_WEIGHTS}`: `{sha256_of_file(weights)}`.", "")
    text = yaml.safe_dump(dict(document), sort_keys=False).rstrip()
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))  # longer than any in the text
    yield from ("The run, with every option:", "", f"{fence}yaml", text, fence)


def _numbers(rows: list[Mapping[str, Any]]) -> Iterator[str]:
    columns = [column for column, value in rows[0]["metrics"].items() if value is not None]
    yield "| snapshot | sampler | NFE | " + " | ".join(columns) + " |"
    yield "|---" * (3 + len(columns)) + "|"
    for row in rows:
        cells = [
            markdown(str(row["snapshot"])),
            markdown(str(row["sampler"])),
            str(row["nfe"]),
            *(_number(row["metrics"].get(c)) for c in columns),
        ]
        yield "| " + " | ".join(cells) + " |"
    yield from ("", _SHOWN.get(rows[0]["show"], ""), "")


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.15g}"
