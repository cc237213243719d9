"""config.yaml holds the paper: its published hyperparameters, its tables, and a plan that needs nothing to be here."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from onestep.config import read_experiment
from onestep.plan import Plan, measured
from onestep.plan.inputs import needed_inputs
from recipes import RECIPES, recipe
from tiny import REPOSITORY

_CNN, _VIT = ("vgg16_bn", "efficientnet_lite0"), ("deit_base", "efficientnet_lite0")
# The released training script: images, batch, learning rates of generator and discriminator, half-life, backbones.
PUBLISHED = {
    "cifar10_uncond": (5_000_000, 256, 1e-4, 1e-4, 500_000, _CNN),
    "cifar10_cond": (5_000_000, 256, 1e-4, 1e-4, 500_000, _CNN),
    "afhqv2": (10_000_000, 256, 2e-5, 4e-5, 500_000, _VIT),
    "ffhq": (10_000_000, 256, 2e-5, 4e-5, 500_000, _VIT),
    "imagenet64": (10_000_000, 512, 8e-6, 4e-5, 50_000_000, _VIT),
}
GPUS = 4  # of the script; its loss is a sum over the rows of one


@pytest.fixture(scope="module")
def experiment():
    return read_experiment(REPOSITORY / "config.yaml")


@pytest.mark.parametrize("dataset", PUBLISHED)
@pytest.mark.parametrize("method", ["d2o", "d2o_f"])
def test_a_run_has_the_published_hyperparameters(experiment, dataset, method):
    run = experiment.runs[f"{dataset}_{method}"]
    images, batch, generator, discriminator, half_life, backbones = PUBLISHED[dataset]
    assert (run.images, run.batch, run.snapshot_every, run.seed) == (images, batch, 250_000, 42)
    assert (run.optimizers["generator"].lr, run.optimizers["discriminator"].lr) == (generator, discriminator)
    assert {(each.name, each.betas, each.eps) for each in run.optimizers.values()} == {("adam", (0.0, 0.99), 1e-8)}
    assert (run.ema.half_life, run.ema.ramp_up) == (half_life, 0.05)
    assert run.discriminator.backbones == backbones
    assert run.freeze == (("conv", "proj") if method == "d2o_f" else ())
    assert (run.preconditioning, run.dropout, run.precision.generator) == ("d2o", 0.0, "bfloat16")
    assert run.precision.discriminator == "float32" and not run.precision.tf32
    options = run.objective.options
    assert (options["r1_gamma"], options["r1_every"], options["sigma"]) == (1e-4, 16, 80.0)
    assert (options["loss"], options.get("augment")) == ("non_saturating", None)
    assert options["rows_per_rank"] == batch / GPUS


def test_the_references_odd_behaviours_are_chosen_by_name(experiment):
    chosen = [experiment.runs[name].discriminator.options for name in measured.default_runs(experiment)]
    assert {each["projection"] for each in chosen} == {"per_rank"}
    assert {each["batch_norm"] for each in chosen} == {"probed"}
    conditional = {
        name for name, run in experiment.runs.items() if (run.discriminator and run.discriminator.class_embeddings)
    }
    assert conditional == {name for name, run in experiment.runs.items() if run.conditional} != set()


def test_every_published_number_says_where_it_is_from(experiment):
    sources = [
        number.source for table in experiment.tables.values() for row in table.rows for number in row.published.values()
    ]
    assert len(sources) > 50
    assert all(sources)


def test_every_dataset_has_a_table_and_the_best_snapshot_by_fid_stands_in_it(experiment):
    for name in PUBLISHED:
        table = experiment.tables[name]
        assert table.select == "best_fid"
        assert table.show == "first"
        assert table.seeds == ("0-49999", "50000-99999", "100000-149999")
        assert {row.run for row in table.rows} >= {f"{name}_d2o", f"{name}_d2o_f"}


def test_recipes_are_runs_of_the_config(experiment):
    assert {recipe(run)["run"] for run in RECIPES} == set(RECIPES) <= experiment.runs.keys()


def test_each_input_is_needed(experiment):
    plan = Plan.read(REPOSITORY / "config.yaml")
    assert set(needed_inputs(plan)) == set(experiment.inputs)


def test_a_dry_run_with_nothing_here_plans_what_the_readme_says(tmp_path: Path):
    (tmp_path / "config.yaml").write_text((REPOSITORY / "config.yaml").read_text())
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(REPOSITORY / "Snakefile"), "--directory", tmp_path]
    dry = subprocess.run([*command, "--dry-run", "--quiet", "rules"], capture_output=True, text=True)
    assert dry.returncode == 0, dry.stderr
    listed = re.findall(r"^([\w.=]+) +(\d+)$", dry.stdout + dry.stderr, flags=re.M)
    counts = {name: int(count) for name, count in listed}
    trainings = {name for name in counts if name.startswith("train_")}
    assert trainings == {f"train_{name}" for name in measured.default_runs(read_experiment(tmp_path / "config.yaml"))}
    told = dict(
        re.findall(r"^\| `(\w+)`[^|]*\| ([\d,]+) \|", (REPOSITORY / "docs" / "paper.md").read_text(), flags=re.M)
    )
    rest = {name: count for name, count in counts.items() if name not in trainings | {"all", "total"}}
    together = {name for name in rest if name.startswith("measure")}
    expected = {name: count for name, count in rest.items() if name not in together}
    expected |= {"train": len(trainings), "measure": sum(rest[name] for name in together)}
    assert {name: int(count.replace(",", "")) for name, count in told.items()} == expected
    assert not list(tmp_path.glob("results/*"))
