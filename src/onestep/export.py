"""A generator for publication: one self-contained file of weights, a model card, a picture of samples."""

from __future__ import annotations

import inspect
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

from onestep import components
from onestep.chain import sampler_for
from onestep.checkpoints.diffusers_dit import diffusers_config_of, diffusers_tensors_of
from onestep.checkpoints.diffusers_folder import CONFIG, PREFIX, SCHEDULER, WEIGHTS, folder_config, scheduler_config
from onestep.checkpoints.snapshot import Snapshot, read_snapshot, write_tensors
from onestep.config.reading import read_experiment
from onestep.drawing import draw, write_grid
from onestep.escapes import markdown, one_line
from onestep.files import read_json, regular_file, replacing, sha256_of_file, write_json, write_text
from onestep.licences import derived_licence, licences_of
from onestep.networks import load_denoiser
from onestep.networks._laws import ddpm_time
from onestep.published import CARD, EXPORTED, class_names_of, run_of, snapshot_of, weights_file
from onestep.records import read_run_config, read_summary
from onestep.report.table import recorded_digests
from onestep.sampling._decoding import codec_of
from onestep.shapes import misfit

_ROW = {
    **dict.fromkeys(("snapshot", "sampler"), (str, None)),
    "nfe": (int, None),
    "metrics": {str: (float, None)},
    "show": str,
}
_PICTURE = "samples.png"
_SAMPLES = 16
# Layouts of others, and why none is written: a file that loads, but makes other images, would be worse than none.
_REFUSED = {
    "edm": "Its pickles execute EDM's own classes, none of which has the law of a one-step generator (d2o)",
    "diffusers": "Of the networks here, UNet2DModel is unet2d and DiTTransformer2DModel is dit with classes, both of "
    "law ddpm in one step alone; any other one would make other images",
}
_SAMPLERS = {"one_step": "OneStep", "chain": "Chain"}
_SHOWN = {
    "mean": "Each number is the mean over its blocks of seeds.",
    "first": "Each number is that of the first block of seeds.",
    "best": "Each number is the best of its blocks of seeds, a biased estimate.",
}
_USE = """\
from onestep.drawing import draw
from onestep.networks import load_denoiser
from onestep.sampling.{module} import {sampler}

generator = load_denoiser("generator.safetensors")
samples = next(draw(generator, {sampler}({options}), seeds=range(16){classes}))
samples.pixels  # uint8 [16, {size}, {size}, {channels}]"""
_USE_OF_DIFFUSERS = """\
import torch
from diffusers import {kind}

network = {kind}.from_pretrained(".").eval()
sigma, time = {sigma}, {time}
noisy = sigma * torch.randn(16, {shape})
with torch.no_grad():
    noise = network(noisy / (1 + sigma**2) ** 0.5, torch.full((16,), time){labels}).sample{part}
images = noisy - sigma * noise  # in about [-1, 1]"""
_KINDS = {"unet2d": "UNet2DModel", "dit": "DiTTransformer2DModel"}
_COMMAND = "onestep sample generator.safetensors images.png --seeds 0-63"


def export(
    weights: Path, *, run: Path | None, table: Path | None, licence: str | None, layout: str, folder: Path
) -> str:
    """Write `generator.safetensors`, a model card `README.md` and a picture `samples.png`, and return a summary.

    In the layout `diffusers` config.json and weights of a UNet2DModel or a DiT, and the scheduler's config, are in its
    place. A DiT's is right at the time of its one step alone, as diffusers has other frequencies.

    The weights are what `onestep.published.weights_file` finds, the bytes of a snapshot of `run`, by default the run
    that they are of. The card has the snapshot's numbers of `table`, a tables/{table}.json, or none. Without a
    `licence` it is the one that follows from those of the run's inputs.

    Raises:
        ValueError: A layout that the generator does not have, the run's objective does not train a generator of one or
            few steps, its licence does not follow, or the table has no row of the snapshot.
    """
    if layout == "edm":
        raise ValueError(_refused(layout))
    if licence is not None and (one_line(licence) != licence or not licence):
        raise ValueError(f"--licence: got {licence!r}, expected one line without control characters")
    weights = weights_file(weights)
    config = read_snapshot(regular_file(weights)).config
    if found := misfit(config, {"name": str, "img_resolution": int, "img_channels": int}):
        raise ValueError(f"{weights}: {found}. Fix: choose a snapshot of a generator")
    run = run_of(weights) if run is None else run
    if run is None:
        raise ValueError(f"--run: got none, and {weights} is in no run's folder. Fix: --run FOLDER")
    _, document = read_run_config(run / "run.yaml")
    if found := misfit(document, {"objective": {"name": str}, "dataset": str}):
        raise ValueError(f"{run / 'run.yaml'}: {found}. Fix: resolve the run again")
    summary = read_summary(run / "summary.json", run=document["run"], keys=("parameters", "frozen_share"))
    objective = document["objective"]
    sampler = sampler_for(objective)
    if sampler is None:
        raise ValueError(
            f"{run}: got objective {objective['name']}, expected one that trains a generator of one or few steps. "
            "Fix: choose the run of such an objective"
        )
    if layout == "diffusers" and not _is_of_diffusers(config, sampler):
        raise ValueError(_refused(layout))
    snapshot = snapshot_of(weights, run=document["run"])
    rows = [] if table is None else _rows(table, snapshot=snapshot)
    terms = _terms(run, document["run"], licence=licence)
    names = class_names_of(run, document) if config.get("label_dim") else ()
    head = {
        "license": terms.licence,
        "library_name": layout,
        "tags": [_steps(sampler), one_line(objective["name"])],
        "onestep": {"sampler": sampler, **({"classes": list(names)} if names else {})},
    }
    network = load_denoiser(weights)
    codec = codec_of(weights)
    samples = list(draw(network, components.build("sampling", sampler), seeds=range(_SAMPLES), codec=codec))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CARD).unlink(missing_ok=True)  # of an earlier export; written last
    if layout == "diffusers":
        files = _write_folder(folder, read_snapshot(weights), sampler=sampler)
    else:
        files = [EXPORTED]
        with replacing(folder / EXPORTED) as temporary:
            shutil.copyfile(weights, temporary)
    write_grid(folder / _PICTURE, samples)
    exported = folder / files[0]
    lines = _card(config, document, head=head, summary=summary, rows=rows, terms=terms, weights=exported, name=snapshot)
    write_text(folder / CARD, "\n".join(lines) + "\n")
    upload = f"Upload: hf upload OWNER/{document['run'].replace('=', '-').replace(',', '-')} {folder}"
    return f"{folder}: {', '.join(files)}, {CARD}, {_PICTURE}; licence {terms.licence}{terms.origin}\n{upload}"


@dataclass(frozen=True, kw_only=True)
class _Terms:
    """A licence and, where it was derived, from what."""

    licence: str
    stated: Mapping[str, str] = field(default_factory=dict)

    @property
    def origin(self) -> str:
        """Where it comes from, to be appended to it."""
        return f", from {'; '.join(f'{of}: {text}' for of, text in self.stated.items())}" if self.stated else ""


def _terms(run: Path, name: str, *, licence: str | None) -> _Terms:
    """Return the given licence, or the one that follows from the config beside the results of a run."""
    if licence is not None:
        return _Terms(licence=licence)
    config = run.absolute().parents[2] / "config.yaml"
    try:
        stated = licences_of(read_experiment(config), run=name)
        return _Terms(licence=derived_licence(stated), stated={of: text for of, text in stated.items() if text})
    except ValueError as error:
        reason = str(error).splitlines()[0]
        expected = "expected the licence of the weights, because none follows"
        raise ValueError(
            f"--licence: got none, {expected}: {reason}. Fix: --licence NAME, such as cc-by-4.0"
        ) from error


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
    head: Mapping[str, Any],
    summary: Mapping[str, Any],
    rows: list[Mapping[str, Any]],
    terms: _Terms,
    weights: Path,
    name: str,
) -> Iterator[str]:
    """Yield the lines of the card: front matter of model hubs, description, samples, use, numbers, run.yaml."""
    objective = document["objective"]
    size, channels, classes = config["img_resolution"], config["img_channels"], config.get("label_dim") or 0
    conditioning = f"{classes} classes" if classes else "unconditional"
    sampler = head["onestep"]["sampler"]
    teacher = f", from the diffusion model {document['teacher']}" if document.get("teacher") else ""
    text = yaml.safe_dump(dict(head), allow_unicode=True, width=10_000, sort_keys=False, default_flow_style=None)
    yield from ("---", text.rstrip(), "---", "", f"# {markdown(document['run'])}", "")
    images = name.rpartition("@")[2].partition("-")[0]
    images = f"{int(images):,}" if images.isdecimal() else "some"
    yield (
        f"A {_steps(sampler)} image generator, {channels} x {size} x {size}, {conditioning}: {config['name']} with "
        f"{summary['parameters']:,} parameters, {100 * summary['frozen_share']:.1f} % of them frozen, trained on "
        f"{images} images of {markdown(document['dataset'])} with objective "
        f"{objective['name']}{teacher}."
    )
    yield from ("", f"![Samples of seeds 0 to {_SAMPLES - 1}]({_PICTURE})", "")
    if head["library_name"] == "diffusers":
        yield from _use_of_diffusers(config, sampler)
        yield from _end(document, rows=rows, terms=terms, weights=weights)
        return
    chosen = f", classes=[{classes - 1}] * 16" if classes else ""
    options = ", ".join(f"{key}={value}" for key, value in sampler.items() if key != "name")
    named = {"module": sampler["name"], "sampler": _SAMPLERS[sampler["name"]], "options": options}
    use = _USE.format(**named, size=size, channels=channels, classes=chosen)
    yield from ("With the package `onestep`:", "", "```python", use, "```", "", "```bash", _COMMAND, "```", "")
    yield from _end(document, rows=rows, terms=terms, weights=weights)


def _end(document: Mapping[str, Any], *, rows: list[Mapping[str, Any]], terms: _Terms, weights: Path) -> Iterator[str]:
    """Yield the lines of the card from its numbers on."""
    if rows:
        yield from _numbers(rows)
    yield from (f"Licence: {markdown(f'{terms.licence}{terms.origin}')}.", "")
    yield from (f"SHA-256 of `{weights.name}`: `{sha256_of_file(weights)}`.", "")
    text = yaml.safe_dump(dict(document), sort_keys=False).rstrip()
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))  # longer than any in the text
    yield from ("The run, with every option:", "", f"{fence}yaml", text, fence)


def _refused(layout: str) -> str:
    return f"--format: got {layout}. {_REFUSED[layout]}. Fix: --format onestep"


def _is_of_diffusers(config: Mapping[str, Any], sampler: Mapping[str, Any]) -> bool:
    is_known = config["name"] == "unet2d" or (config["name"] == "dit" and bool(config.get("label_dim")))
    return is_known and (config.get("preconditioning"), sampler["name"]) == ("ddpm", "one_step")


def _level(sampler: Mapping[str, Any]) -> tuple[float, float]:
    """Return noise level and time of a generator's one step."""
    sigma = float(sampler.get("sigma", 80.0))
    return sigma, ddpm_time(torch.tensor([sigma])).item()


def _write_folder(folder: Path, network: Snapshot, *, sampler: Mapping[str, Any]) -> list[str]:
    """Write a network as diffusers saves one, and return the names of its files, that of the weights first."""
    whole = {**_defaults(network.config["name"]), **network.config}
    if whole["name"] == "dit":
        from onestep.networks.dit import for_one_time  # and with it timm, which takes a second

        config, state = for_one_time(whole, network.state_dict, time=_level(sampler)[1])
        tensors = diffusers_tensors_of(Snapshot(config=config, state_dict=state, note={}))
        described = diffusers_config_of(config)
    else:
        tensors = {name.removeprefix(PREFIX): each for name, each in network.state_dict.items()}
        described = folder_config(whole)
    write_tensors(folder / WEIGHTS, tensors, texts={"format": "pt"})
    write_json(folder / CONFIG, described)
    write_json(folder / SCHEDULER, scheduler_config())
    return [WEIGHTS, CONFIG, SCHEDULER]


def _defaults(name: str) -> dict[str, Any]:
    """Return the options of a network that its config may leave out."""
    parameters = inspect.signature(components.load("networks", name)).parameters.values()
    return {each.name: each.default for each in parameters if each.default is not each.empty}


def _use_of_diffusers(config: Mapping[str, Any], sampler: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of the card with code that makes images with diffusers alone."""
    sigma, time = _level(sampler)
    channels, size = config["img_channels"], config["img_resolution"]
    named = {
        "kind": _KINDS[config["name"]],
        "labels": f", class_labels=torch.full((16,), {config['label_dim'] - 1})" if config.get("label_dim") else "",
        "part": f"[:, :{channels}]" if config["name"] == "dit" else "",
    }
    use = _USE_OF_DIFFUSERS.format(sigma=sigma, time=f"{time:.6f}", shape=f"{channels}, {size}, {size}", **named)
    yield from ("With diffusers:", "", "```python", use, "```", "")


def _steps(sampler: Mapping[str, Any]) -> str:
    return f"{sampler.get('steps', 'one')}-step"


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
