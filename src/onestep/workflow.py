"""The verb `run`: Snakemake with the Snakefile of this package, and the tables at the end."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import onestep

_PACKAGE = Path(onestep.__file__).parent


def workflow_folder() -> Path:
    """Return the folder with Snakefile, workflow/ and profiles/: in the package of a wheel, else the clone.

    Raises:
        ValueError: There is none.
    """
    for folder in (_PACKAGE / "_workflow", _PACKAGE.parents[1]):
        if (folder / "Snakefile").is_file() and (folder / "workflow").is_dir():
            return folder
    raise ValueError(f"{_PACKAGE}: got no Snakefile, expected that of a wheel or a clone. Fix: install onestep again")


def run(
    *targets: str,
    config: Path = Path("config.yaml"),
    profile: str = "local",
    dry_run: bool = False,
    cores: int | None = None,
) -> int:
    """Run the workflow of a config to its tables and page; only what changed runs again.

    Args:
        targets: Files below results/, or rules; without them all tables, studies and the page.
        config: The config; its folder is where results go.
        profile: `local`, `slurm`, or the folder of a profile of your own.
        dry_run: Show what would run, and why.
        cores: Processor cores; by default all (local), or those of the profile.
    """
    if not config.is_file():
        fix = "Fix: onestep init --dataset IMAGES --teacher FILE|none, or --config FILE"
        raise ValueError(f"{config}: got no file, expected a config. {fix}")
    if importlib.util.find_spec("snakemake") is None:
        raise ValueError("snakemake: got no such package, expected it here. Fix: pip install 'onestep[workflow]'")
    folder = workflow_folder()
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(folder / "Snakefile")]
    command += ["--directory", str(config.parent), "--profile", str(_profile(profile, folder=folder))]
    command += ["--cores", str(cores)] if cores is not None else []
    command += ["--dry-run"] if dry_run else []
    command += ["--config", f"experiment={config.name}"] if config.name != "config.yaml" else []
    # A target after `--config` would be read as a pair of it.
    command += ["--", *targets] if targets else []
    begun = time.time()
    code = _wait(command, environment=_environment())
    if code == 0 and not dry_run and not targets:
        _show(config, since=begun)
    return code


def _profile(name: str, *, folder: Path) -> Path:
    """Return the folder of a profile: one of the package's by its name, else a path."""
    known = folder / "profiles" / name
    if "/" not in name and known.is_dir():
        return known
    if not Path(name).is_dir():
        names = ", ".join(sorted(each.name for each in (folder / "profiles").iterdir() if each.is_dir()))
        raise ValueError(f"--profile: got {name!r}, expected one of {names}, or the folder of a profile")
    return Path(name).absolute()


def _environment() -> Mapping[str, str]:
    """Return the environment, in which the rules find `onestep` also where its own is not active."""
    return {**os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])}


def _wait(command: list[str], *, environment: Mapping[str, str]) -> int:
    """Run a command and return its exit code; Ctrl-C reaches it by its terminal, and other signals are passed on."""
    sys.stdout.flush()
    with subprocess.Popen(command, env=environment) as process:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:
                continue  # it ends by itself, after saving its trainings
            except BaseException:
                process.terminate()
                process.wait()
                raise


def _show(config: Path, *, since: float) -> None:
    """Print the tables of a config, and where they and the page are; nothing if the workflow has just done so."""
    from onestep.config.reading import read_experiment
    from onestep.files import read_text
    from onestep.results import Results

    results = Results(config.parent / "results")
    tables = [path for name in read_experiment(config).tables if (path := results.table(name, ".md")).exists()]
    if any(path.stat().st_mtime >= since for path in tables):
        return
    for path in tables:
        print(f"\n{read_text(path)}")
    found = [("table", path) for path in tables] + [("page", results.report)]
    print("\n".join(f"{kind:6} {path}" for kind, path in found if path.exists()))
