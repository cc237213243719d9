"""How planning, status and tables grow with the number of runs: CPU seconds at 1, 2 and 4 times the runs of a family.

    python tests/tools/growth.py                       # 25, 50 and 100 runs: about a minute of one core
    python tests/tools/growth.py --runs 100 --times 1 2 4 8
    python tests/tools/growth.py --config config.yaml  # one config as it is, without results: planning and status

Prints one line a size and, from the first to the last, the exponent: 1 is linear. `--record docs/records` keeps them.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
sys.path[:0] = [str(REPOSITORY / "src"), str(REPOSITORY / "tests")]

from onestep.bench.recording import Stopwatch, write_benchmark  # noqa: E402
from onestep.components import hide_computing  # noqa: E402
from onestep.plan import Plan, measured, report  # noqa: E402
from report.results_tree import measurement  # noqa: E402
from tiny import tiny_config, write_config  # noqa: E402


def main() -> None:
    """Print the CPU seconds of each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=25, help="runs of the family at 1 times")
    parser.add_argument("--times", type=int, nargs="+", default=[1, 2, 4], help="sizes as multiples of --runs")
    parser.add_argument("--config", type=Path, help="measure this config instead")
    parser.add_argument("--record", type=Path, help="folder of the records")
    options = parser.parse_args()
    hide_computing()
    watch = Stopwatch()
    if options.config is not None:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "config.yaml").write_bytes(options.config.read_bytes())
            seconds = dict(_seconds(Path(folder), with_table=False))
        print(_line(options.config.name, seconds))
        if options.record is not None:
            about = f"CPU seconds of a plan and of `onestep status` of {options.config.name}, without results."
            print(write_benchmark(options.record, name="planning", about=about, took=watch.read(), numbers=seconds))
        return
    found = []
    for times in options.times:
        with tempfile.TemporaryDirectory() as folder:
            write_config(Path(folder), _family(options.runs * times))
            found.append(dict(_seconds(Path(folder), with_table=True)))
        print(_line(f"{options.runs * times} runs", found[-1]), flush=True)
    sizes = [options.runs * times for times in options.times]
    numbers = {
        f"{runs} runs.{key}": value for runs, each in zip(sizes, found, strict=True) for key, value in each.items()
    }
    if len(found) > 1:
        span = math.log(sizes[-1] / sizes[0])
        exponents = {key: math.log(found[-1][key] / found[0][key]) / span for key in found[0]}
        print(_line("exponent", exponents))
        numbers |= {f"exponent.{key}": value for key, value in exponents.items()}
    if options.record is not None:
        about = (
            "How CPU seconds of planning, status and a table grow with the number of runs; an exponent of 1 is linear."
        )
        print(write_benchmark(options.record, name="growth", about=about, took=watch.read(), numbers=numbers))


def _family(runs: int) -> dict:
    """Return the tiny demo with a family of `runs` members, one row of its table each."""
    config = tiny_config()
    config["runs"]["digits_d2o"]["vary"] = {"seed": list(range(runs))}
    table = config["tables"]["digits"]
    table["rows"] = [{"run": "digits_d2o.*", "sampler": "one_step"}]
    return config


def _seconds(folder: Path, *, with_table: bool) -> Iterator[tuple[str, float]]:
    """Yield what was measured, by name: CPU seconds, and the size of its rows."""
    snakemake = ["-m", "snakemake", "--snakefile", str(REPOSITORY / "Snakefile"), "--directory", ".", "--cores", "1"]
    yield "plan", _cpu([*snakemake, "--dry-run", "--quiet", "rules"], folder=folder)
    yield "status", _cpu(["-m", "onestep", "status"], folder=folder)
    if with_table:
        options = _fill(folder)
        words = ["--config", "config.yaml", "--name", "digits", "--results", "results", "--output", "results/tables"]
        yield "table", _cpu(["-m", "onestep", "tabulate", *words], folder=folder)
        yield "table KiB", len(options) / 1024


def _fill(folder: Path) -> str:
    """Write the numbers of a config's table; return its rows as the plan composes them."""
    os.chdir(folder)
    plan = Plan.read("config.yaml")
    values = {"fd": {"frechet": 5.0}, "is": {"inception_score": 8.0, "inception_score_std": 0.1}}
    values["pr"] = {"precision": 0.9, "recall": 0.8}
    for each in measured.of_experiment(plan.experiment):
        path = plan.results.metric(each.model, each.sampler, each.seeds, each.metric)
        named = {"model": str(each.model), "sampler": each.sampler, "seeds": each.seeds}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(measurement(**named, metric=each.metric, values=values[each.metric])))
    return report.table_options(plan, "digits")


def _cpu(words: list[str], *, folder: Path) -> float:
    """Return the CPU seconds of a Python process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _line(name: str, values: dict[str, float]) -> str:
    return f"{name:12}" + "".join(f"  {key} {value:7.2f}" for key, value in values.items())


if __name__ == "__main__":
    main()
