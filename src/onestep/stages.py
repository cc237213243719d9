"""Which files of the family folders a stage loads by name: what a code fingerprint cannot see for itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onestep import components
from onestep.fingerprint import Fingerprints


def training_plugins(document: Mapping[str, Any]) -> list[str]:
    """Return the modules a run loads by name, from its resolved document.

    A run that starts from a teacher, or looks through a backbone, learns only from their files which network that is;
    so every network, or every classifier, counts.
    """
    modules = [f"onestep.objectives.{document['objective']['name']}"]
    for key, family in (("network", "networks"), ("classifier", "classifiers"), ("discriminator", "discriminators")):
        if document.get(key):
            modules.append(f"onestep.{family}.{document[key]['name']}")
    if document["objective"].get("augment"):
        modules.append(f"onestep.augmentations.{document['objective']['augment']['name']}")
    if document.get("teacher"):
        modules += [f"onestep.networks.{name}" for name in components.choices("networks")]
    if document.get("discriminator"):
        modules += [f"onestep.classifiers.{name}" for name in components.choices("classifiers")]
    return modules


def training_code(document: Mapping[str, Any], *, fingerprints: Fingerprints) -> str:
    """Return the fingerprint of the code that trains a run; how it is launched does not count."""
    return fingerprints.fingerprint("onestep.training.run", plugins=training_plugins(document))
