"""The verb `run`: Snakemake with the Snakefile of this package, and the tables at the end."""

from __future__ import annotations

import csv
import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
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


def record_workflow(*command: str, config: Path = Path("config.yaml"), name: str = "workflow", record: Path) -> int:
    """Run a command that runs the workflow of a config, and record its time, that of each stage, and the tables.

    The exit code is that of the command. Of a workflow that was partly done before there is no record.

    Examples:
      onestep bench workflow --config demo/config.yaml --record docs/records -- snakemake --directory demo ...

    Args:
        command: The command, after `--`.
        config: The config; its folder has the results and benchmarks.
        name: Name of the record.
        record: Folder of the record.
    """
    from onestep.bench.recording import Stopwatch, write_benchmark

    if not command:
        raise ValueError("bench workflow: got no command, expected one. Fix: add it after --")
    if not config.is_file():
        raise ValueError(f"{config}: got no file, expected a config. Fix: correct the path")
    began, watch = time.time(), Stopwatch()
    code = _wait(list(command), environment=_environment())
    took = watch.read()
    if code != 0:
        return code
    jobs = sorted((config.parent / "benchmarks").rglob("*.tsv"))
    if earlier := sum(path.stat().st_mtime < began for path in jobs):
        print(
            f"no record: {earlier} of {len(jobs)} jobs were done before. Delete results, benchmarks and state to time"
        )
        return 0
    of_jobs = [
        (path.relative_to(config.parent / "benchmarks").parts[0].removesuffix(".tsv"), _job(path)) for path in jobs
    ]
    place = write_benchmark(
        record,
        name=name,
        about=f"The workflow of {config.absolute().parent.name}/{config.name}: time of each stage, and the tables.",
        took=took,
        numbers={"jobs": len(jobs), **_stages(of_jobs), **_table_numbers(config.parent / "results" / "tables")},
        command=command,
        memory_mib=max((job["max_rss"] for _, job in of_jobs), default=None),
    )
    print(place)
    return 0


def _stages(jobs: Sequence[tuple[str, Mapping[str, float]]]) -> Mapping[str, float]:
    """Return the seconds and CPU seconds of all jobs of a stage, as `{stage}.seconds` and `{stage}.cpu_seconds`."""
    numbers: dict[str, float] = {}
    for stage, job in jobs:
        for key, of in (("seconds", "s"), ("cpu_seconds", "cpu_time")):
            numbers[f"{stage}.{key}"] = round(numbers.get(f"{stage}.{key}", 0.0) + job[of], 2)
    return numbers


def _table_numbers(folder: Path) -> Mapping[str, float | None]:
    """Return the cells of all tables as `{table}.{run}.{sampler}.{column}`, and their deviations, with `_std`."""
    from onestep.report.table import read_rows

    numbers: dict[str, float | None] = {}
    for path in sorted(folder.glob("*.json")):
        for row in read_rows(path):
            model = ".".join(filter(None, (path.stem, row.run or row.label, row.sampler)))
            for column, number in row.numbers.items():
                numbers[f"{model}.{column}"] = number.shown
                if number.std is not None:
                    numbers[f"{model}.{column}_std"] = number.std
    return numbers


def _job(path: Path) -> Mapping[str, float]:
    """Return the numbers of Snakemake's benchmark of a job; 0 where a short job has none ("-" or "NA")."""
    with open(path, encoding="utf-8", newline="") as file:
        row = next(csv.DictReader(file, delimiter="\t"), {})

    def number(key: str) -> float:
        try:
            return float(row.get(key) or 0.0)
        except ValueError:
            return 0.0

    return {key: number(key) for key in ("s", "cpu_time", "max_rss")}


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
