"""Images that nobody keeps: each block passes through all its feature networks while it is generated."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from onestep.config.sections import Experiment
from onestep.files import canonical_json
from onestep.fingerprint import Fingerprints
from onestep.models import parse_model
from onestep.plan.features import Features
from onestep.plan.images import Images
from onestep.plan.numbers import Numbers
from onestep.plan.paths import weights


@dataclass(frozen=True, kw_only=True)
class ObservationPlan:
    """Blocks of images that pass through the same feature networks while they are generated.

    Attributes:
        rule: What the rule is called.
        blocks: Matches `{model}/{sampler}/{seeds}` of these blocks alone.
        features: The networks.
        weights: Their weights, in this order.
        networks: The networks and their options, as an option of `onestep observe`.
        weight_options: The same for their weights.
    """

    rule: str
    blocks: str
    features: tuple[str, ...]
    weights: list[str]
    networks: str
    weight_options: str


class Observations:
    """All blocks that anything is measured of.

    Args:
        experiment: The config.
        numbers: What is measured of them.
        images: How they are drawn.
        features: What they pass through.
        fingerprints: Of the code that is here.
    """

    def __init__(
        self,
        experiment: Experiment,
        *,
        numbers: Numbers,
        images: Images,
        features: Features,
        fingerprints: Fingerprints,
    ) -> None:
        self._experiment, self._numbers, self._fingerprints = experiment, numbers, fingerprints
        self._images, self._features = images, features

    @property
    def looks(self) -> Iterator[ObservationPlan]:
        """All of them, by the feature networks that this takes."""
        blocks: dict[tuple[str, ...], list[str]] = {}
        for block, features in self._features_by_block.items():
            blocks.setdefault(tuple(sorted(features)), []).append(block)
        return (self._look(features, members) for features, members in blocks.items())

    def _look(self, features: tuple[str, ...], blocks: Sequence[str]) -> ObservationPlan:
        paths = {name: self._features.weights_of(name) for name in features}
        return ObservationPlan(
            rule=f"observe_{'_and_'.join(features)}",
            blocks="|".join(map(re.escape, blocks)),
            features=features,
            weights=list(paths.values()),
            networks=canonical_json({name: self._features.options_of(name) for name in features}),
            weight_options=" ".join(f"{name}={path}" for name, path in paths.items()),
        )

    @functools.cached_property
    def _features_by_block(self) -> dict[str, set[str]]:
        """Return for each block of images the feature networks that metrics of it look through."""
        found: dict[str, set[str]] = {}
        for number in self._numbers:
            found.setdefault(number.block, set()).add(self._experiment.metrics[number.metric].features)
        return found

    def network(self, wildcards: Any) -> str:
        """The network whose images are observed."""
        return weights(parse_model(wildcards.block.split("/")[0]))

    def sampler(self, wildcards: Any) -> str:
        """What draws them."""
        return self._images.sampler(wildcards.block.split("/")[1])

    def seeds(self, wildcards: Any) -> str:
        """Their seeds."""
        return wildcards.block.split("/")[2]

    def code(self, wildcards: Any) -> str:
        """Fingerprint of the sampler, the networks and the feature networks."""
        model, sampler, _ = wildcards.block.split("/")
        features = sorted(self._features_by_block[wildcards.block])
        loaded = [*self._images.drawn_with(model, sampler), *self._features.looked_through(*features)]
        return self._fingerprints.fingerprint("onestep.cli:observe", plugins=loaded)
