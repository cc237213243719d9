"""Whether a site is ready for trainings: what was found, what to do, and which lines the profile needs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from onestep.config.launch import Launch
from onestep.config.reading import read_launch
from onestep.launch import machine_checks, slurm_checks
from onestep.launch.cluster import Cluster
from onestep.launch.finding import Finding, Mark


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Looks at a site; the working directory is the folder of the config.

    Attributes:
        launch: What the config says in its section of that name; the defaults where there is no config.
        config: The config, None where there is none to look at.
        state: The folder that runs keep their state in.
        cluster: SLURM's commands.
    """

    launch: Launch
    config: Path | None
    state: Path
    cluster: Cluster

    @classmethod
    def of(cls, config: Path | None, *, state: Path, cluster: Cluster) -> Doctor:
        """Return the doctor for a config.

        Raises:
            ConfigError: The config is not readable, no YAML, or wrong in its section `launch`.
        """
        launch = Launch() if config is None else read_launch(config)
        return cls(launch=launch, config=config, state=state, cluster=cluster)

    def findings(self) -> Iterator[Finding]:
        """Yield what there is to know of the site."""
        slurm = slurm_checks.is_here()
        remote = slurm and self.launch.backend != "local"
        yield self._backend(slurm=slurm, remote=remote)
        if remote:
            yield from slurm_checks.Site.of(self.cluster, launch=self.launch).findings()
            yield machine_checks.driver_finding()
        yield from machine_checks.state_findings(self.state, shared=remote)
        yield from machine_checks.quota_findings()
        yield machine_checks.python_finding(self.launch if remote else Launch())
        yield machine_checks.container_finding()
        yield machine_checks.gpu_finding(needed=not remote)
        if self.config is not None:
            yield from machine_checks.input_findings(self.config)

    def _backend(self, *, slurm: bool, remote: bool) -> Finding:
        """Return where trainings run."""
        subject, asked = "backend", self.launch.backend
        if remote:
            found = "slurm: trainings and the other rules become its jobs"
            return Finding(mark=Mark.OK, subject=subject, found=found, profile={"executor": "slurm"})
        if asked == "slurm":
            remedy = "load the site's SLURM module, or say `launch: {backend: local}`"
            return Finding(mark=Mark.BAD, subject=subject, found="slurm is asked for and not in PATH", remedy=remedy)
        why = "launch.backend says so" if slurm else "no SLURM in PATH"
        return Finding(mark=Mark.OK, subject=subject, found=f"local ({why}): everything runs on this machine")


def profile_lines(findings: Iterable[Finding]) -> Iterator[str]:
    """Yield the lines that the profile needs by what was found; none where it needs none."""
    profile: dict[str, Any] = {}
    for finding in findings:
        _merge(profile, finding.profile)
    if profile:
        yield from ("", "Put into your profile:", *yaml.safe_dump(profile, sort_keys=False).splitlines())


def _merge(profile: dict[str, Any], more: Mapping[str, Any]) -> None:
    """Add keys to a profile; mappings of the same name become one."""
    for key, value in more.items():
        profile[key] = {**profile.get(key, {}), **value} if isinstance(value, Mapping) else value
