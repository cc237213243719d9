"""Functions of sample.smk."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onestep import components
from onestep.files import canonical_json
from onestep.fingerprint import Component, every
from onestep.models import parse_model
from onestep.plan import Plan, inputs
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


def stores_images(plan: Plan) -> bool:
    """Whether generated images are files at all: to keep them, for a metric of pixels, or for a study."""
    metrics = plan.experiment.metrics.values()
    pixels = any("pixels" in components.outline("metrics", each.name).inputs for each in metrics)
    keeps = plan.experiment.storage.images == "keep"
    return keeps or pixels or any(isinstance(o, Samples) for o in all_observables(plan.experiment))


def sampling_code(plan: Plan, model: str, sampler: str) -> str:
    """Return the code fingerprint of sampling a model."""
    return plan.fingerprints.of_stage("sample", _sampling_components(plan, model, sampler))


def _sampling_components(plan: Plan, model: str, sampler: str) -> list[Component]:
    return [("sampling", plan.experiment.samplers[sampler].name), *_networks(plan, parse_model(model).name)]


def _networks(plan: Plan, name: str) -> list[Component]:
    """Return the networks that a run or teacher may have; all, where only its checkpoint names it."""
    if name in plan.experiment.teachers:
        run = plan.experiment.teachers[name].run
        return every("networks") if run is None else _networks(plan, run)
    run_ = plan.experiment.runs[name]
    if run_.network is not None:
        return [("networks", run_.network.name)]
    assert run_.teacher is not None, name
    return _networks(plan, run_.teacher)


def subject_options(wildcards: Any) -> str:
    """Return the name of a rule's dataset or input as an option of `onestep extract`, quoted for a shell."""
    named = [(f"--{key}", name) for key, name in wildcards.items() if key in ("dataset", "input")]
    return shlex.join(word for pair in named for word in pair)


def extraction_code(plan: Plan, features: str) -> str:
    """Return the code fingerprint of a feature extraction."""
    return plan.fingerprints.of_stage("extract", _extraction_components(plan, features))


def _extraction_components(plan: Plan, *features: str) -> list[Component]:
    return [*(("features", plan.experiment.features[name].name) for name in features), *every("classifiers")]


def observe_rules(plan: Plan) -> list[ObserveRule]:
    """The rules that sample and extract at once: one for each set of feature extractors."""
    blocks: dict[tuple[str, ...], list[str]] = {}
    for block, features in plan.features_by_block.items():
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


def observation_code(plan: Plan, block: str) -> str:
    """Return the code fingerprint of sampling and extracting one seed block at once."""
    model, sampler, _ = block.split("/")
    features = _extraction_components(plan, *sorted(plan.features_by_block[block]))
    return plan.fingerprints.of_stage("observe", [*_sampling_components(plan, model, sampler), *features])
