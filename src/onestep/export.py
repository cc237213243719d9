"""A generator for other people: one file of weights that builds itself, and a card that says what it is."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from onestep.checkpoints.snapshot import Snapshot, read_snapshot
from onestep.files import read_json, replacing, sha256_of_file, write_text
from onestep.report.numbers import plain

_WEIGHTS = "generator.safetensors"
_SHOWN = {
    "mean": "Each number is the mean over its blocks of seeds.",
    "first": "Each number is that of the first block of seeds.",
    "best": "Each number is the best of its blocks of seeds, which flatters.",
}
_USE = """\
from onestep.networks import load_denoiser
from onestep.sampling import generate
from onestep.sampling.one_step import OneStep

generator = load_denoiser("generator.safetensors")
samples = next(generate(generator, OneStep(sigma={sigma}), seeds=range(16), batch=16))
samples.pixels  # uint8 [16, {size}, {size}, {channels}]"""


def export(weights: Path, *, run: Path, table: Path | None, licence: str, folder: Path) -> None:
    """Write `generator.safetensors` and a model card `README.md`.

    Args:
        weights: A snapshot of the run.
        run: The run's folder, with run.yaml and summary.json.
        table: A table with numbers of this snapshot, `tables/{table}.json`; None for a card without numbers.
        licence: Under which terms it is passed on. What comes from one of EDM's networks stays under CC BY-NC-SA 4.0.
        folder: Receives both files.

    Raises:
        ValueError: The weights are no snapshot of a one-step generator, or the table has no row of it.
    """
    snapshot = read_snapshot(weights)
    document, summary = yaml.safe_load((run / "run.yaml").read_text()), read_json(run / "summary.json")
    if "sigma" not in document["objective"]:
        raise ValueError(
            f"{run}: objective {document['objective']['name']} trains no one-step generator; name another run"
        )
    rows = [] if table is None else _rows(table, snapshot=f"{document['run']}@{weights.stem}")
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / _WEIGHTS) as temporary:
        shutil.copyfile(weights, temporary)
    lines = _card(snapshot, document=document, summary=summary, rows=rows, licence=licence, weights=weights)
    write_text(folder / "README.md", "\n".join(lines) + "\n")


def _rows(table: Path, *, snapshot: str) -> list[Mapping[str, Any]]:
    """Return the rows of a table that measured a snapshot."""
    rows = read_json(table)
    found = [row for row in rows if row["snapshot"] == snapshot]
    if not found:
        known = ", ".join(dict.fromkeys(row["snapshot"] for row in rows if row["snapshot"]))
        raise ValueError(f"{table}: has no row of {snapshot}, only of {known}; name one of these, or leave --table out")
    return found


def _card(
    snapshot: Snapshot,
    *,
    document: Mapping[str, Any],
    summary: Mapping[str, Any],
    rows: list[Mapping[str, Any]],
    licence: str,
    weights: Path,
) -> Iterator[str]:
    """Yield the card's lines: front matter as model hubs read it, then prose."""
    config = snapshot.config
    yield from ("---", f"license: {licence}", "tags: [one-step, gan, edm, d2o]", "---", "")
    yield from (f"# {document['run']}", "")
    yield _description(config, document=document, summary=summary, images=int(weights.stem.partition("-")[0]))
    yield from ("", "```python")
    yield _USE.format(
        sigma=document["objective"]["sigma"], size=config["img_resolution"], channels=config["img_channels"]
    )
    yield from ("```", "")
    yield from _numbers(rows)
    yield from (f"SHA-256 of `{_WEIGHTS}`: `{sha256_of_file(weights)}`.", "")
    yield from ("The run, with every option:", "", "```yaml", yaml.safe_dump(dict(document), sort_keys=False).rstrip())
    yield "```"


def _description(
    config: Mapping[str, Any], *, document: Mapping[str, Any], summary: Mapping[str, Any], images: int
) -> str:
    """Return in a sentence what the generator is and how it came to be."""
    size = config["img_resolution"]
    return (
        f"A one-step image generator, {config['img_channels']} x {size} x {size}, {_conditioning(config)}: "
        f"{config['name']} with {summary['parameters']:,} parameters, {100 * summary['frozen_share']:.1f} % of them "
        f"frozen, trained on {images:,} images of {document['dataset']} with objective "
        f"{document['objective']['name']}{_teacher(document)}."
    )


def _conditioning(config: Mapping[str, Any]) -> str:
    return f"{config['label_dim']} classes" if config.get("label_dim") else "unconditional"


def _teacher(document: Mapping[str, Any]) -> str:
    return f", from the diffusion model {document['teacher']}" if document.get("teacher") else ""


def _numbers(rows: list[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the measured numbers as a Markdown table."""
    if not rows:
        return
    columns = [column for column, value in rows[0]["metrics"].items() if value is not None]
    yield "| snapshot | sampler | evaluations | " + " | ".join(columns) + " |"
    yield "|---" * (3 + len(columns)) + "|"
    for row in rows:
        cells = [row["snapshot"], row["sampler"], str(row["nfe"]), *(plain(row["metrics"][c]) for c in columns)]
        yield "| " + " | ".join(cells) + " |"
    yield from ("", _SHOWN[rows[0]["show"]], "")
