"""Time limits of jobs from arithmetic: images x evaluations x operations of the network, at an assumed rate of a GPU.

A limit that is too long costs a place in a queue, one that is too short the job. So the rate is that of a GPU of 2020
that is badly used, and whatever the network's operations are not known for keeps a fixed limit. Nothing is measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from onestep import components
from onestep.config.constraints import seeds_of
from onestep.files import read_json
from onestep.inputs import Published, read_registry
from onestep.models import parse_model
from onestep.plan import Plan

RATES = {False: 0.30 * 19.5e12, True: 0.15 * 312e12}
"""FLOP/s by whether numbers are in half precision: of one A100 (its data sheet: 19.5e12 in float32 without TF32,
312e12 in bfloat16) at an assumed utilisation of 30 % and of 15 %, which the trainings of EDM reached."""

# Per image of 299 or 224 pixels, two per multiply-add, all in float32.
_FEATURE_GFLOP = {"inception": 11.4, "vgg16": 31.0, "clip": 8.8, "dinov2": 162.0}
_FEATURE_SECONDS = 0.004  # of a core, per image: decoding and Pillow's resize, measured as 0.0013
_START_HOURS = 1.0  # to start, read weights and write files, on a slow file system
_SHORTEST_HOURS = 2
_UNKNOWN_HOURS = 12  # of a network whose operations are not stated
_MANY = 1_300_000  # images of a dataset that is not prepared yet: ImageNet


@dataclass(frozen=True, kw_only=True)
class Work:
    """The operations of one evaluation of a network for one image, and their number type."""

    gflop: float
    half: bool


def sampling_minutes(plan: Plan, block: str) -> int:
    """Return the time limit of sampling a seed block `{model}/{sampler}/{seeds}` and extracting all its features."""
    model, sampler, seeds = block.split("/")
    images, work = len(seeds_of(seeds)), evaluation(plan, parse_model(model).name)
    if work is None:
        return 60 * _UNKNOWN_HOURS
    chosen = components.build_outline("sampling", plan.experiment.samplers[sampler])
    if chosen is None:
        return 60 * _UNKNOWN_HOURS
    seconds = images * chosen.nfe * work.gflop * 1e9 / RATES[work.half]
    seconds += sum(_extraction(plan, name, images=images) for name in plan.features_by_block.get(block, ()))
    return _minutes(seconds)


def extraction_minutes(plan: Plan, features: str, *, of: Mapping[str, str]) -> int:
    """Return the time limit of extracting features `of` a seed block (`seeds`), a `dataset`, or an input."""
    images = len(seeds_of(of["seeds"])) if "seeds" in of else _images(plan, of.get("dataset"))
    return _minutes(_extraction(plan, features, images=images))


def evaluation(plan: Plan, name: str) -> Work | None:
    """Return the work of the network of a run or teacher: that of the published checkpoint that it comes from."""
    experiment = plan.experiment
    if name in experiment.runs:
        run = experiment.runs[name]
        return None if run.teacher is None else evaluation(plan, run.teacher)
    teacher = experiment.teachers[name]
    if teacher.run is not None:
        return evaluation(plan, teacher.run)
    published = _published(plan, teacher.input)
    if published is None or published.gflop is None:
        return None
    return Work(gflop=published.gflop, half=published.half)


def _published(plan: Plan, name: str | None) -> Published | None:
    source = None if name is None else plan.experiment.inputs[name].published
    return None if source is None else read_registry().get(source)


def _extraction(plan: Plan, features: str, *, images: int) -> float:
    gflop = _FEATURE_GFLOP.get(plan.experiment.features[features].name, max(_FEATURE_GFLOP.values()))
    return images * (gflop * 1e9 / RATES[False] + _FEATURE_SECONDS)


def _images(plan: Plan, dataset: str | None) -> int:
    """Return the images of a dataset by its card, or many if it is not prepared or not known."""
    if dataset is None:
        return _MANY
    try:
        found = read_json(plan.results.data(dataset, ".json"), {"images": int})["images"]
    except (OSError, ValueError, KeyError):
        return _MANY
    return int(found)


def _minutes(seconds: float) -> int:
    return 60 * max(_SHORTEST_HOURS, math.ceil(_START_HOURS + seconds / 3600))
