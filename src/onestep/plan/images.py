"""What models draw."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from onestep import components
from onestep.config.sections import Experiment
from onestep.files import canonical_json
from onestep.fingerprint import Fingerprints
from onestep.models import parse_model
from onestep.plan.options import own_options
from onestep.plan.paths import weights


class Images:
    """Images of models through the section `samplers`.

    Args:
        experiment: The config.
        blocks: The section as a document.
        fingerprints: Of the code that is here.
    """

    def __init__(self, experiment: Experiment, *, blocks: Mapping[str, Any], fingerprints: Fingerprints) -> None:
        self._experiment, self._blocks, self._fingerprints = experiment, blocks, fingerprints

    @property
    def kept(self) -> bool:
        """Whether generated images go into files, from which features are extracted."""
        return self._experiment.storage.images == "keep"

    def network(self, wildcards: Any) -> str:
        """The network of a model."""
        return weights(parse_model(wildcards.model))

    def options(self, wildcards: Any) -> str:
        """The sampler and its options."""
        return self.sampler(wildcards.sampler)

    def sampler(self, name: str) -> str:
        """Return a sampler and its options."""
        return canonical_json(own_options(self._blocks[name]))

    def code(self, wildcards: Any) -> str:
        """Fingerprint of the sampler, the networks and what turns them into pixels."""
        loaded = self.drawn_with(wildcards.model, wildcards.sampler)
        return self._fingerprints.fingerprint("onestep.cli:sample", plugins=loaded)

    def drawn_with(self, model: str, sampler: str) -> list[str]:
        """Return the modules that a model and a sampler are loaded from by name."""
        networks = [f"onestep.networks.{name}" for name in self._networks_of(parse_model(model).name)]
        return [f"onestep.sampling.{self._experiment.samplers[sampler].name}", *networks]

    def _networks_of(self, model: str) -> Iterable[str]:
        """Return the network files a run or teacher may be built from; one, unless only its pickle knows."""
        if model in self._experiment.teachers:
            run = self._experiment.teachers[model].run
            return components.choices("networks") if run is None else self._networks_of(run)
        described = self._experiment.runs[model]
        return [described.network.name] if described.network is not None else self._networks_of(described.teacher)
