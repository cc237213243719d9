"""A one-step generator for publication: one self-contained file of weights and a model card."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from onestep import components
from onestep.checkpoints.snapshot import read_snapshot
from onestep.files import read_json, replacing, sha256_of_file, write_text

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
    config = read_snapshot(weights).config
    document, summary = yaml.safe_load((run / "run.yaml").read_text(encoding="utf-8")), read_json(run / "summary.json")
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
    rows = read_json(table)
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
    yield from ("---", f"license: {licence}", f"tags: [one-step, {objective['name']}]", "---", "")
    yield from (f"# {document['run']}", "")
    yield (
        f"A one-step image generator, {channels} x {size} x {size}, {conditioning}: {config['name']} with "
        f"{summary['parameters']:,} parameters, {100 * summary['frozen_share']:.1f} % of them frozen, trained on "
        f"{int(weights.stem.partition('-')[0]):,} images of {document['dataset']} with objective "
        f"{objective['name']}{teacher}."
    )
    yield from ("", "```python", _USE.format(sigma=sigma, size=size, channels=channels), "```", "")
    if rows:
        yield from _numbers(rows)
    yield from (f"SHA-256 of `{_WEIGHTS}`: `{sha256_of_file(weights)}`.", "")
    yield from ("The run, with every option:", "", "```yaml", yaml.safe_dump(dict(document), sort_keys=False).rstrip())
    yield "```"


def _numbers(rows: list[Mapping[str, Any]]) -> Iterator[str]:
    columns = [column for column, value in rows[0]["metrics"].items() if value is not None]
    yield "| snapshot | sampler | NFE | " + " | ".join(columns) + " |"
    yield "|---" * (3 + len(columns)) + "|"
    for row in rows:
        cells = [row["snapshot"], row["sampler"], str(row["nfe"]), *(f"{row['metrics'][c]:.15g}" for c in columns)]
        yield "| " + " | ".join(cells) + " |"
    yield from ("", _SHOWN[rows[0]["show"]], "")
