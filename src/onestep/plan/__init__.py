"""Inputs and parameters of the rules, from config.yaml; a module here for each file of workflow/rules/.

Paths are those of `onestep.results`. A parameter holds only the keys of the config that its stage reads, as canonical
JSON, so that other edits rerun nothing; the code of a stage is the fingerprint of the modules that it imports.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from onestep.config.fit import teacher_problems
from onestep.config.messages import ConfigError
from onestep.config.reading import experiment_document, read_experiment
from onestep.config.sections import Experiment
from onestep.files import canonical_json
from onestep.fingerprint import Fingerprints
from onestep.models import Snapshot, parse_model
from onestep.plan import measured
from onestep.plan.progress import progress as progress_of
from onestep.plan.progress import without_passed
from onestep.results import Results, State, block
from onestep.studies import Features, SnapshotFeatures

# Keys of components that refer to other sections.
_REFERENCES = {
    "datasets": ("input", "dataset", "references"),
    "features": ("input", "run"),
    "metrics": ("features", "networks", "held_out", "against"),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """What the functions of this package read: the config, its file, fingerprints, and the layout of the results.

    `experiment` lacks snapshots that a run can no longer make, see `progress.without_passed`; `as_written` has all,
    unless it is None because `experiment` has.
    """

    experiment: Experiment
    as_written: Experiment | None = None
    source: str = "config.yaml"
    fingerprints: Fingerprints
    results: Results = Results()
    state: State = State()

    @classmethod
    def read(cls, config: str | Path) -> Plan:
        """Read and check a config. ConfigError: Something in it is wrong."""
        experiment = read_experiment(config)
        if problems := list(teacher_problems(experiment)):
            raise ConfigError(problem.line(str(config)) for problem in problems)
        possible = without_passed(experiment, results=Results(), state=State())
        return cls(experiment=possible, as_written=experiment, source=str(config), fingerprints=Fingerprints())

    def asked_by(self, words: Sequence[str]) -> Plan:
        """Return the plan without studies on request and the runs that they alone observe, which costs seconds.

        It is the plan itself if one of the `words`, those of the command line, contains the name of one of them.
        """
        studies, runs = measured.default_studies(self.experiment), measured.default_runs(self.experiment)
        aside = {*self.experiment.studies, *self.experiment.runs} - {*studies, *runs}
        if not aside or any(name in word for word in words for name in aside):
            return self
        written = self.experiment
        kept = replace(
            written,
            studies={name: written.studies[name] for name in studies},
            runs={name: written.runs[name] for name in runs},
        )
        return replace(self, experiment=kept, as_written=self.written)

    @property
    def written(self) -> Experiment:
        """The config with all snapshots that it names."""
        return self.as_written or self.experiment

    @functools.cached_property
    def document(self) -> dict[str, Any]:
        """The config as mappings and lists, every default filled in."""
        return experiment_document(self.written)

    @functools.cached_property
    def features_by_block(self) -> dict[str, set[str]]:
        """The feature extractors of each seed block, for all metrics and studies."""
        found: dict[str, set[str]] = {}
        for each in measured.of_experiment(self.experiment):
            features = self.experiment.metrics[each.metric].extractors
            blocks = [each.block, measured.compared_with(self.experiment, each)]
            for name in filter(None, blocks):
                found.setdefault(name, set()).update(features)
        for seen in measured.all_observables(self.experiment):
            if isinstance(seen, Features):
                model = measured.model_named(self.experiment, seen.model)
                found.setdefault(block(model, seen.sampler, seen.seeds), set()).add(seen.features)
            if isinstance(seen, SnapshotFeatures):
                for images in self.experiment.runs[seen.run].snapshots:
                    model = Snapshot(name=seen.run, images=images)
                    found.setdefault(block(model, seen.sampler, seen.seeds), set()).add(seen.features)
        return found

    @functools.cached_property
    def metrics_by_block(self) -> dict[str, tuple[str, ...]]:
        """The metrics of each seed block, sorted."""
        found: dict[str, set[str]] = {}
        for each in measured.of_experiment(self.experiment):
            found.setdefault(each.block, set()).add(each.metric)
        return {name: tuple(sorted(metrics)) for name, metrics in found.items()}

    @functools.cached_property
    def trained_again(self) -> frozenset[str]:
        """The runs whose published snapshots are of another science, so that all that follows is made again."""
        found = {
            run: progress_of(self.written, run, results=self.results, state=self.state) for run in self.written.runs
        }
        return frozenset(run for run, each in found.items() if each.changed)

    def block(self, section: str, name: str) -> dict[str, Any]:
        """Return a component with its options, without references to other sections."""
        others: tuple[str, ...] = _REFERENCES.get(section, ())
        if section == "studies":
            others = ("on_request",)
        if section == "datasets" and self.experiment.datasets[name].classes is not None:
            others = (*others, "classes")
        return {k: v for k, v in self.document[section][name].items() if k not in others}

    # These two are parameters of every job, and the same for most.
    @functools.cache  # noqa: B019
    def options(self, section: str, name: str) -> str:
        """Return the same as canonical JSON, the parameter of a rule."""
        return canonical_json(self.block(section, name))

    @functools.cache  # noqa: B019
    def code(self, stage: str, section: str, name: str) -> str:
        """Return the code fingerprint of a stage that runs one component of a section."""
        family, block = "data" if section == "datasets" else section, self.document[section][name]
        codec = block.get("codec") if section == "datasets" else None
        others = [("autoencoders", codec["name"])] if isinstance(codec, dict) else []
        return self.fingerprints.of_stage(stage, [(family, block["name"]), *others])

    def weights(self, model: str) -> Path:
        """Return the weights of a model."""
        return self.results.weights(parse_model(model))

    # Of the site: no parameters of rules, so that an edit reruns nothing.

    @property
    def threads(self) -> int:
        """Processor cores of a job that uses a GPU or measures."""
        return self.experiment.launch.cpus_per_process

    @property
    def gpu(self) -> dict[str, Any]:
        """One GPU as resources of a rule, in the form that the site requires."""
        site = self.experiment.launch
        kind = "gpu" if site.gpu_type is None else f"gpu:{site.gpu_type}"
        return {
            "gpu": 1 if site.gpus == "gpus" else None,
            "gpu_model": site.gpu_type if site.gpus == "gpus" else None,
            "gres": f"{kind}:1" if site.gpus == "gres" else None,
        }
