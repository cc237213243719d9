"""The verb `init`: examine a dataset and a teacher, write a config.yaml, print what was found."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

_WORDS = ("yes", "no", "on", "off", "y", "n", "true", "false", "null")  # that YAML does not read as text

if TYPE_CHECKING:
    from onestep.init.dataset import Found
    from onestep.init.teacher import Teacher


def init(
    *,
    dataset: Path,
    teacher: str,
    size: Literal["auto", "small", "medium", "full"] = "auto",
    resolution: int | None = None,
    labels: Literal["auto", "folders", "none"] = "auto",
    device: Literal["auto", "cuda", "cpu"] = "auto",
    output: Path = Path("config.yaml"),
    force: bool = False,
) -> int:
    """Write a config.yaml for your images and your checkpoint.

    Args:
        dataset: Images: a folder, a zip or a tar; or an archive in EDM's format.
        teacher: A pickle of EDM's format, a snapshot, or an exported generator: a file, an address, or a name of
            `onestep fetch --list`; `none`: a diffusion model is pre-trained here.
        size: Lengths and widths: `small` for minutes on a CPU, `medium` for a day of one GPU, `full` as published;
            `auto` is medium with a GPU, else small.
        resolution: Pixels of the prepared images, a power of two; by default that of the teacher or of the images.
        labels: Whether folders are classes.
        device: Where trainings run; `auto`: on a GPU if this machine has one.
        output: The config; its folder is where results go.
        force: Overwrite a config.
    """
    from onestep.files import write_text
    from onestep.init.dataset import examine_dataset
    from onestep.init.proposal import propose
    from onestep.init.teacher import examine_teacher

    if output.exists() and not force:
        raise ValueError(f"{output}: got an existing file, expected none. Fix: another --output, or --force")
    found = examine_dataset(dataset, labels=labels)
    known = None if teacher == "none" else examine_teacher(teacher, folder=output.parent)
    values = propose(found, known, size=size, device=device, resolution=resolution, folder=output.parent)
    text = _checked(_text(values), source=str(output))
    write_text(output, text)
    for line in _report(found, known, values, output=output):
        print(line)
    return 0


def _text(values: dict[str, Any]) -> str:
    import jinja2

    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["quoted"] = _quoted
    environment.filters["mapping"] = lambda block: ", ".join(f"{key}: {_quoted(value)}" for key, value in block.items())
    return environment.get_template("config.yaml.jinja").render(values)


def _quoted(text: str) -> str:
    """Return a text for a flow mapping of YAML: as it is, or in double quotes where it is not plain."""
    is_plain = re.fullmatch(r"[A-Za-z_./][A-Za-z0-9_./-]*", text) and text.lower() not in _WORDS
    return text if is_plain else json.dumps(text)


def _checked(text: str, *, source: str) -> str:
    """Return the text of a config that `onestep run` accepts; else ConfigError."""
    import yaml

    from onestep.config.fit import teacher_problems
    from onestep.config.messages import ConfigError
    from onestep.config.reading import parse_experiment

    experiment = parse_experiment(yaml.safe_load(text), source=source)
    if problems := list(teacher_problems(experiment)):
        raise ConfigError(problem.line(source) for problem in problems)
    return text


def _report(found: Found, teacher: Teacher | None, values: dict[str, Any], *, output: Path) -> Iterator[str]:
    """Yield what was found, what was chosen and why, and the next command."""
    colours = "grey" if found.channels == 1 else "colour"
    yield f"found    {found.path}: {found.images:,} images, {_sizes(found)}, {colours}"
    if found.classes:
        counts = [f"{label} ({images:,})" for label, images in found.classes]
        yield f"         {len(counts):,} classes: {', '.join(counts[:8])}{', ...' if counts[8:] else ''}"
    else:
        yield "         no classes"
    yield from (f"         {note}" for note in found.notes)
    if teacher is not None:
        weights = "" if teacher.parameters is None else f", {teacher.parameters:,} weights"
        condition = f"{teacher.classes} classes" if teacher.classes else "unconditional"
        yield f"found    {teacher.filename}: {teacher.architecture}, law {teacher.law}, {condition}{weights}"
    side, lengths = values["resolution"], values["lengths"]
    square = "scaled" if found.is_square else "the largest centred square, scaled"
    unchanged = found.sizes == ((side, side),)
    yield f"images   {side}x{side}, {'as they are' if unchanged else square}: {values['why_resolution']}"
    if teacher is None:
        kind = "class-conditional" if values["conditional"] else "unconditional"
        yield f"teacher  pre-trained here on {lengths.teacher:,} images: DDPM++ of width {lengths.width}, {kind}"
    yield f"D2O-F    {lengths.generator:,} images (size {values['size']}, {values['device']}: {values['why_device']})"
    if values["pretrained"]:
        yield f"backbone {', '.join(values['backbones'])}; metric features: Inception (FID): {values['why_pretrained']}"
        if values["few_for_fid"]:
            yield "         FID of fewer than 10,000 images is biased upwards: compare the rows with each other alone"
    else:
        learned = "the classes" if found.classes else "rotations of the images, as there are no labels"
        yield f"backbone a classifier trained here on {learned}, another for metrics (FD, which is no FID):"
        yield f"         {values['why_pretrained']}"
    first, *others = values["seeds"]
    images = int(first.partition("-")[2]) + 1
    few = ", as many as there are images" if images < lengths.seeds else ""
    yield f"table    {1 + len(others)} blocks of {images:,} seeds{few}"
    yield f"wrote    {output}"
    options = "" if str(output) == "config.yaml" else f" --config {output}"
    options += " --profile slurm" if values["backend"] == "slurm" else ""
    yield f"next     onestep run{options} --dry-run    # what will run; then without --dry-run"


def _sizes(found: Found) -> str:
    (height, width), (most_height, most_width) = found.sizes[0], found.sizes[-1]
    same = len(found.sizes) == 1
    return f"{width}x{height}" if same else f"from {width}x{height} to {most_width}x{most_height}"
