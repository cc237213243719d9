"""What a config.yaml proposes for a dataset and a teacher: sizes, networks, features, seeds, each with its reason."""

from __future__ import annotations

import contextlib
import math
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from onestep.init.dataset import Found
from onestep.init.teacher import Teacher
from onestep.inputs import absent, is_offline, read_registry

SizeName = Literal["auto", "small", "medium", "full"]
Device = Literal["auto", "cuda", "cpu"]


@dataclass(frozen=True, kw_only=True)
class Size:
    """Lengths in images, and widths, of one scale of experiment."""

    teacher: int  # of the pre-training
    generator: int  # of the fine-tuning
    classifier: int
    batch: int
    width: int  # of the pre-trained network, with its blocks per level
    blocks: int
    seeds: int  # the most in a block
    seed_blocks: int
    snapshots: int
    teacher_lr: float
    generator_lr: float


# `small` is ours, for minutes on two CPU cores at 16x16. `full` has the lengths and widths of EDM (arXiv:2206.00364,
# Table 7) and of the released training script of D2O for CIFAR-10; `medium` is a tenth of D2O's, for a day of one GPU.
SIZES: Mapping[str, Size] = {
    "small": Size(
        teacher=40_000,
        generator=12_000,
        classifier=8_000,
        batch=64,
        width=16,
        blocks=1,
        seeds=1_000,
        seed_blocks=2,
        snapshots=1,
        teacher_lr=2e-3,
        generator_lr=2e-4,
    ),
    "medium": Size(
        teacher=5_000_000,
        generator=500_000,
        classifier=500_000,
        batch=256,
        width=64,
        blocks=2,
        seeds=10_000,
        seed_blocks=3,
        snapshots=5,
        teacher_lr=1e-3,
        generator_lr=1e-4,
    ),
    "full": Size(
        teacher=200_000_000,
        generator=5_000_000,
        classifier=2_000_000,
        batch=256,
        width=128,
        blocks=4,
        seeds=50_000,
        seed_blocks=3,
        snapshots=20,
        teacher_lr=1e-3,
        generator_lr=1e-4,
    ),
}
_LEAST_RESOLUTION = 16  # of the classifiers that are trained here
_MOST_RESOLUTION = {"cpu": 32, "cuda": 64}  # that `auto` proposes; EDM's pixel-space networks end at 64
METRIC_WIDTH = 24  # of the classifier whose features metrics compare; it has twice as many features
_LEAST_IMAGES = 4 * METRIC_WIDTH  # twice the features: below, a covariance is meaningless
_FEW_FOR_INCEPTION = 10_000
_PAPERS_BACKBONES = ("vgg16_bn.tv_in1k", "tf_efficientnet_lite0.in1k")  # of its runs on CIFAR-10
_INCEPTION = "inception-2015-12-05"
_HIGH_RESOLUTION = 64  # from here on EDM takes 40 Heun steps, else 18 (arXiv:2206.00364, Table 1)


def propose(
    found: Found,
    teacher: Teacher | None,
    *,
    size: SizeName,
    device: Device,
    resolution: int | None,
    folder: Path,
) -> dict[str, Any]:
    """Return the values of the template config.yaml.jinja; `folder` is that of the config.

    Raises:
        ValueError: The images do not fit the teacher, or are too few.
    """
    device, backend, why_device = _device(device)
    if size == "auto":
        size = "medium" if device == "cuda" else "small"
    chosen = SIZES[size]
    side, why_side = _resolution(found, teacher, device=device, given=resolution)
    channels = found.channels if teacher is None else teacher.channels
    _check_fit(found, teacher, channels=channels)
    conditional = bool(found.classes) if teacher is None else bool(teacher.classes)
    as_archive = found.reader == "image_zip" and side == found.side
    name = _name(found.path)
    pretrained, why_pretrained = _pretrained(channels, device=device, size=size, folder=folder)
    seeds = min(chosen.seeds, _rounded(found.images))
    batch = min(chosen.batch, 1 << (found.images.bit_length() - 1))
    levels = int(math.log2(side)) - 2
    return {
        "name": name,
        "title": f"{name.replace('_', ' ').capitalize()}, {side}x{side}",
        "file": _relative(found.path, folder=folder),
        "reader": "image_zip" if as_archive else "images",
        "resolution": side,
        "why_resolution": why_side,
        "transform": "scale" if found.is_square else "center_crop",
        "channels": channels,
        "labels": "folders" if found.classes and not as_archive else "none",
        "classes": [label for label, _ in found.classes],
        "root": found.root,
        "unreadable_share": math.ceil(found.unreadable * 100) / 100,
        "images": found.images,
        "conditional": conditional,
        "missing_classes": teacher.classes if teacher and len(found.classes) < teacher.classes else None,
        "teacher": teacher,
        "teacher_source": _teacher_source(teacher, folder=folder),
        "size": size,
        "lengths": chosen,
        "batch": batch,
        "snapshot_every": chosen.generator // chosen.snapshots,
        "mult": [1] + [2] * (levels - 1),
        "attention": [16 if side > _LEAST_RESOLUTION else 8],
        "heun_steps": 40 if side >= _HIGH_RESOLUTION else 18,
        "metric_width": METRIC_WIDTH,
        "pretrained": pretrained,
        "backbones": [_key(each) for each in _PAPERS_BACKBONES],
        "timm": dict(zip(map(_key, _PAPERS_BACKBONES), _PAPERS_BACKBONES, strict=True)),
        "inception": _INCEPTION,
        "why_pretrained": why_pretrained,
        "few_for_fid": seeds < _FEW_FOR_INCEPTION,
        "seeds": [f"{block * seeds}-{(block + 1) * seeds - 1}" for block in range(chosen.seed_blocks)],
        "device": device,
        "why_device": why_device,
        "backend": backend,
        "cpus": max(1, min(4, (os.cpu_count() or 1) // 2)),
    }


def _device(given: Device) -> tuple[Literal["cuda", "cpu"], str, str]:
    """Return where trainings run, by which backend of `launch`, and why."""
    import torch

    here, has_slurm = torch.cuda.is_available(), shutil.which("sbatch") is not None
    if given == "cuda" and not here and has_slurm:
        return "cuda", "slurm", "as requested, on GPUs of the cluster"
    if given != "auto":
        return given, "local", "as requested"
    if here:
        return "cuda", "local", "this machine has a GPU"
    elsewhere = "; for GPUs of the cluster: --device cuda" if has_slurm else ""
    return "cpu", "local", f"this machine has no GPU{elsewhere}"


def _resolution(found: Found, teacher: Teacher | None, *, device: str, given: int | None) -> tuple[int, str]:
    """Return the side of the prepared images, a power of two, and why."""
    if teacher is not None:
        if given not in (None, teacher.resolution):
            raise ValueError(f"--resolution: got {given}, expected {teacher.resolution}, that of the teacher")
        return teacher.resolution, "that of the teacher"
    if given is not None:
        if given < _LEAST_RESOLUTION or given & (given - 1):
            raise ValueError(f"--resolution: got {given}, expected a power of two from {_LEAST_RESOLUTION} on")
        return given, "as requested"
    nearest = max(_LEAST_RESOLUTION, 1 << round(math.log2(found.side)))
    most = _MOST_RESOLUTION[device]
    if nearest > most:
        return most, f"the most that is proposed for {device}; another: onestep init --resolution {nearest}"
    if len(found.sizes) == 1 and found.is_square and nearest == found.side:
        return nearest, "that of the images"
    return nearest, f"the power of two next to {found.side}, the median of the shorter sides"


def _check_fit(found: Found, teacher: Teacher | None, *, channels: int) -> None:
    if found.images < _LEAST_IMAGES:
        expected = f"expected at least {_LEAST_IMAGES}: metrics compare {2 * METRIC_WIDTH} features"
        raise ValueError(f"{found.path}: got {found.images} images, {expected}. Fix: add images")
    if teacher is None:
        return
    if channels < found.channels:
        colours = f"{found.path}: got images in colour, expected grey ones for the teacher {teacher.filename}"
        raise ValueError(f"{colours}, which has {channels} channel. Fix: another teacher, or none")
    if channels > 1 and found.channels == 1 and found.reader == "image_zip":
        raise ValueError(f"{found.path}: got a grey archive, expected {channels} channels. Fix: a folder of its images")
    if teacher.classes and not found.classes:
        unlabelled = f"{found.path}: got images without classes, expected the {teacher.classes} classes of the teacher"
        raise ValueError(f"{unlabelled} {teacher.filename}. Fix: class folders, or an unconditional teacher")
    if teacher.classes and len(found.classes) > teacher.classes:
        more = f"{found.path}: got {len(found.classes)} classes, expected at most the {teacher.classes} of the teacher"
        raise ValueError(f"{more} {teacher.filename}. Fix: another teacher, or none")


def _pretrained(channels: int, *, device: str, size: str, folder: Path) -> tuple[bool, str]:
    """Return whether pre-trained networks serve as backbones and metric features, and why."""
    if channels != 3:
        return False, "the images are grey, and networks of ImageNet expect colour"
    if device != "cuda" or size == "small":
        return False, f"networks of 224 to 299 pixels are too slow for size {size} on {device}"
    names = (*_PAPERS_BACKBONES, _INCEPTION)
    with contextlib.chdir(folder if folder.is_dir() else Path()):
        missing = [name for name in names if absent({"published": name}, name=name) is not None]
    if not missing:
        return True, "their weights are here"
    if is_offline():
        return False, f"ONESTEP_OFFLINE is set, and there are no weights of {', '.join(missing)}"
    from onestep.fetch.download import is_reachable

    if all(is_reachable(read_registry()[name].addresses[0]) for name in missing):
        return True, f"{', '.join(missing)} can be downloaded, which `onestep run` does"
    return False, f"{', '.join(missing)} are not here and cannot be downloaded (onestep fetch --only {missing[0]})"


def _teacher_source(teacher: Teacher | None, *, folder: Path) -> dict[str, Any] | None:
    if teacher is None:
        return None
    source = dict(teacher.source)
    return {"file": _relative(Path(source["file"]), folder=folder)} if "file" in source else source


def _relative(path: Path, *, folder: Path) -> str:
    """Return a path for config.yaml: relative where it is below the folder of the config."""
    real, base = path.resolve(), folder.resolve()
    return str(real.relative_to(base)) if real.is_relative_to(base) and real != base else str(real)


def _name(path: Path) -> str:
    stem = path.resolve().name if path.is_dir() else path.name.partition(".")[0]
    name = re.sub(r"[^a-z0-9]+", "_", stem.lower()).strip("_")[:40]
    return name if name[:1].isalpha() else f"images_{name}".rstrip("_")


def _key(published: str) -> str:
    return published.partition(".")[0]


def _rounded(images: int) -> int:
    """Return the number with its first two digits alone: 1,797 becomes 1,700."""
    unit = 10 ** max(0, len(str(images)) - 2)
    return images // unit * unit
