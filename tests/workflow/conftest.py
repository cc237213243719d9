"""A finished pipeline to ask questions of: a copy of the repository, and the tiny config run to its page."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from netless import WITHOUT_NETWORK, may_leave_network
from tiny import REPOSITORY, selecting_config, write_config

_IMPORTED_ONCE = Path(__file__).with_name("imported_once.py")
_COPIED = ("Snakefile", "workflow", "profiles", "envs", "src", "pyproject.toml")


@dataclass(frozen=True)
class Pipeline:
    """A copy of the repository and a working directory."""

    repository: Path
    work: Path

    @property
    def package(self) -> Path:
        """The copy's package, free to edit."""
        return self.repository / "src" / "onestep"

    def snakemake(self, *arguments: str, within: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        """Run Snakemake on the copy in the working directory, by the command `within` if there is one."""
        command = [*within, sys.executable, "-m", "snakemake", "--snakefile", str(self.repository / "Snakefile")]
        command += ["--directory", str(self.work), "--cores", "2", "--scheduler", "greedy", *arguments]
        environment = {**os.environ, "PYTHONPATH": str(self.repository / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    def run(self) -> None:
        """Run the pipeline to its end, as on a compute node: without a network where that can be had.

        Its jobs are forks that need not import torch; those of the other pipelines here start as ever.
        """
        within = (*(WITHOUT_NETWORK if may_leave_network() else ()), sys.executable, str(_IMPORTED_ONCE))
        done = self.snakemake("--rerun-incomplete", within=within)
        assert done.returncode == 0, done.stdout + done.stderr

    def due(self) -> Counter[str]:
        """Return which rules a dry run would run, and how often; the collecting rule `all` left out."""
        dry = self.snakemake("--dry-run")
        assert dry.returncode == 0, dry.stdout + dry.stderr
        text = dry.stdout + dry.stderr
        found = Counter(
            {
                name: int(count)
                for name, count in re.findall(r"^(\w+) +(\d+)$", text, flags=re.M)
                if name not in ("all", "total")
            }
        )
        assert found or "Nothing to be done" in text, text
        return found

    def due_with_files(self) -> tuple[Counter[str], list[str]]:
        """Return which rules a dry run would run, and how often, and the files it would write."""
        lines = [line.split("\t") for line in self.snakemake("--summary").stdout.splitlines()]
        files = [line[0] for line in lines if line[-1] == "update pending"]
        assert files, lines
        return self.due(), files

    def copy(self, folder: Path) -> Pipeline:
        """Return a copy of both, dates kept."""
        shutil.copytree(self.repository, folder / "repository", symlinks=True)
        shutil.copytree(self.work, folder / "work", symlinks=True)
        return Pipeline(folder / "repository", folder / "work")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """The tiny pipeline after a first run; tests that change it work on a copy."""
    folder = tmp_path_factory.mktemp("pipeline")
    pipeline = Pipeline(folder / "repository", folder / "work")
    for name in _COPIED:
        source = REPOSITORY / name
        copy = shutil.copytree if source.is_dir() else shutil.copy2
        pipeline.repository.mkdir(exist_ok=True)
        copy(source, pipeline.repository / name)
    write_config(pipeline.work, selecting_config())
    pipeline.run()
    return pipeline
