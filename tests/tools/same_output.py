"""Entries of src/onestep/fingerprints.yaml: which earlier code made the same bytes.

Usage: python tests/tools/same_output.py [--before CHECKOUT] CONFIG...

With --before: print entries from the fingerprints of an earlier checkout (whose plan had classes) to the current ones;
each reads its own configs.
Without: list entries that no stage of the configs has any more; exit code 1 if there are some.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import yaml

HERE = Path(__file__).parents[2]
NOW = """
import json, sys
from onestep.fingerprint import Fingerprints, every
from onestep.config.reading import read_experiment
from onestep.plan import Plan, train
found = {}
for config in sys.argv[1:]:
    plan = Plan(experiment=read_experiment(config), fingerprints=Fingerprints(same_output={}))
    for name, dataset in plan.experiment.datasets.items():
        found["prepare", dataset.name] = plan.code("prepare", "datasets", name)
    found["convert", ""] = plan.fingerprints.of_stage("convert")
    found["embed", ""] = plan.fingerprints.of_stage("embed", every("classifiers"))
    for run in plan.experiment.runs:
        found["train", config + run] = train.training_code(plan, run)
print(json.dumps([[stage, choice, code] for (stage, choice), code in found.items()]))
"""
BEFORE = """
import json, sys
from types import SimpleNamespace
from onestep.plan import Plan
found = {}
for config in sys.argv[1:]:
    plan = Plan.read(config)
    for name, dataset in plan.experiment.datasets.items():
        found["prepare", dataset.name] = plan.datasets.code(SimpleNamespace(dataset=name))
    found["convert", ""], found["embed", ""] = plan.teachers.code(None), plan.class_embeddings.code(None)
    for run in plan.experiment.runs:
        found["train", config + run] = plan.training.code_of(run)
print(json.dumps([[stage, choice, code] for (stage, choice), code in found.items()]))
"""


def fingerprints(program: str, checkout: Path, configs: list[str]) -> dict[tuple[str, str], str]:
    """Return the fingerprints of a checkout for its own configs, by stage and choice."""
    environment = {**os.environ, "PYTHONPATH": str(checkout.absolute() / "src")}
    command = [sys.executable, "-c", program, *configs]
    shown = subprocess.check_output(command, env=environment, cwd=checkout, text=True)
    return {(stage, choice): code for stage, choice, code in json.loads(shown)}


def main(arguments: list[str]) -> int:
    """Print entries, or those that no longer hold."""
    if arguments[0] == "--before":
        now = fingerprints(NOW, HERE, arguments[2:])
        before = fingerprints(BEFORE, Path(arguments[1]), arguments[2:])
        entries: dict[str, dict[str, str]] = {}
        for (stage, choice), code in now.items():
            if (stage, choice) in before:
                entries.setdefault(stage, {})[code] = before[stage, choice]
        print(yaml.safe_dump(entries, sort_keys=False), end="")
        return 0
    held = {(stage, code) for (stage, _), code in fingerprints(NOW, HERE, arguments).items()}
    listed = yaml.safe_load((HERE / "src" / "onestep" / "fingerprints.yaml").read_text()) or {}
    stale = [f"{stage}: {code}" for stage, codes in listed.items() for code in codes if (stage, code) not in held]
    print("\n".join(stale) or "all entries hold")
    return int(bool(stale))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
