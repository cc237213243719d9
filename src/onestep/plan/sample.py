"""Functions of sample.smk."""

from __future__ import annotations

import functools
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onestep import components
from onestep.config.run import CodecBlock
from onestep.config.run_checks import network_of
from onestep.files import canonical_json
from onestep.fingerprint import Component, every
from onestep.models import parse_model
from onestep.plan import Plan, inputs
from onestep.plan.measure import is_trained_again
from onestep.plan.measured import all_observables
from onestep.studies import Samples


@dataclass(frozen=True, kw_only=True)
class ObserveRule:
    """What differs between two rules that sample and extract at once: the feature extractors."""

    name: str
    blocks: str  # pattern of its seed blocks, `{model}/{sampler}/{seeds}`
    features: tuple[str, ...]
    weights: list[Path]  # of the feature extractors, in this order
    options: str  # the extractors with their options, as JSON
    weight_options: str  # their weights as options of `onestep observe`, quoted for a shell


@functools.cache
def stores_images(plan: Plan) -> bool:
    """Whether generated images are files at all: to keep them, for a metric of pixels, for pairs, or for a study."""
    metrics = plan.experiment.metrics.values()
    pixels = any("pixels" in components.outline("metrics", each.name).inputs for each in metrics)
    keeps = plan.experiment.storage.images == "keep"
    paired = any(run.pairs is not None for run in plan.experiment.runs.values())
    return keeps or pixels or paired or any(isinstance(o, Samples) for o in all_observables(plan.experiment))


def sampling_code(plan: Plan, model: str, sampler: str) -> str:
    """Return the code fingerprint of sampling a model."""
    return _code(plan, "sample", parse_model(model).name, sampler, ())


# The same for all snapshots of a run.
@functools.cache
def _code(plan: Plan, stage: str, name: str, sampler: str, features: tuple[str, ...]) -> str:
    """Return the fingerprint of sampling a run or teacher, and of extracting features if there are any."""
    components_ = [("sampling", plan.experiment.samplers[sampler].name), *networks_of(plan, name)]
    components_ += [("autoencoders", codec.name)] if (codec := _codec_of(plan, name)) is not None else []
    components_ += [each for guide in _guides(plan, sampler) for each in networks_of(plan, guide)]
    extraction = _extraction_components(plan, *features) if features else []
    return plan.fingerprints.of_stage(stage, [*components_, *extraction])


def guided_samplers(plan: Plan) -> list[str]:
    """Return the samplers with a second network."""
    return [name for name in plan.experiment.samplers if _guides(plan, name)]


def guide_files(plan: Plan, sampler: str) -> list[Path]:
    """Return the weights of a sampler's second network; none for a sampler without one."""
    return [plan.results.teacher(name) for name in _guides(plan, sampler)]


def decoded_models(plan: Plan) -> str:
    """Return the pattern of the models whose images a codec decodes; empty if there are none."""
    names = [name for name in [*plan.experiment.runs, *plan.experiment.teachers] if _codec_file(plan, name)]
    return rf"(?:{'|'.join(map(re.escape, names))})(?:@.+)?" if names else ""


def codec_files(plan: Plan, model: str) -> list[Path]:
    """Return the file of the codec of a model; an empty list for a model on pixels."""
    return _codec_file(plan, parse_model(model).name)


def _codec_file(plan: Plan, name: str) -> list[Path]:
    codec = _codec_of(plan, name)
    return [] if codec is None or codec.input is None else [plan.results.codec(codec.input)]


def _codec_of(plan: Plan, name: str) -> CodecBlock | None:
    """Return the codec of a run or a teacher, or of the run whose snapshot a teacher is."""
    teacher = plan.experiment.teachers.get(name)
    if teacher is not None and teacher.codec is not None:
        return teacher.codec
    run = plan.experiment.runs.get(name if teacher is None else teacher.run or "")
    return None if run is None else run.codec


def _guides(plan: Plan, sampler: str) -> list[str]:
    guide = plan.experiment.samplers[sampler].options.get("guide")
    return [] if guide is None else [guide]


def networks_of(plan: Plan, name: str) -> list[Component]:
    """Return the networks that a run or teacher may have; all, where only its checkpoint names it."""
    kind = network_of(name, plan.experiment)
    return every("networks") if kind is None else [("networks", kind)]


def subject_options(wildcards: Any) -> str:
    """Return the name of a rule's dataset or input as an option of `onestep extract`, quoted for a shell."""
    named = [(f"--{key}", name) for key, name in wildcards.items() if key in ("dataset", "input")]
    return shlex.join(word for pair in named for word in pair)


@functools.cache
def extraction_code(plan: Plan, features: str) -> str:
    """Return the code fingerprint of a feature extraction."""
    return plan.fingerprints.of_stage("extract", _extraction_components(plan, features))


def _extraction_components(plan: Plan, *features: str) -> list[Component]:
    return [*(("features", plan.experiment.features[name].name) for name in features), *every("classifiers")]


def observe_rules(plan: Plan, *, is_any: bool = False) -> list[ObserveRule]:
    """The rules that sample and extract at once: one for each set of feature extractors.

    Where images are files, such a rule has the blocks of which there is nothing yet; of others `sample` and `extract`
    make what is missing. `is_any`: of other blocks as well, in a job of another process.
    """
    blocks: dict[tuple[str, ...], list[str]] = {}
    for block, features in plan.features_by_block.items():
        if is_any or not stores_images(plan) or (features and _is_new(plan, block)):
            blocks.setdefault(tuple(sorted(features)), []).append(block)
    rules = []
    for names, members in blocks.items():
        weights = {name: inputs.source_of(plan, plan.experiment.features[name]) for name in names}
        rule = ObserveRule(
            name=f"observe_{'_and_'.join(names)}",
            blocks="|".join(map(re.escape, members)),
            features=names,
            weights=list(weights.values()),
            options=canonical_json({name: plan.block("features", name) for name in names}),
            weight_options=shlex.join(f"{name}={path}" for name, path in weights.items()),
        )
        rules.append(rule)
    return rules


def _is_new(plan: Plan, block: str) -> bool:
    results = plan.results
    files = [results.block_samples(block), results.block_grid(block)]
    files += [results.block_features(block, each) for each in plan.features_by_block[block]]
    files += [results.block_metric(block, each) for each in plan.metrics_by_block.get(block, ())]
    return is_trained_again(plan, block) or not any(path.exists() for path in files)


def image_options(output: Any) -> str:
    """Return the file of the images of an observing rule as an option of `onestep observe`, quoted for a shell."""
    images = output.get("images")
    return shlex.join(["--images", str(images)]) if images else ""


def observation_code(plan: Plan, block: str) -> str:
    """Return the code fingerprint of sampling and extracting one seed block at once."""
    model, sampler, _ = block.split("/")
    features = tuple(sorted(plan.features_by_block[block]))
    return _code(plan, "observe", parse_model(model).name, sampler, features)
