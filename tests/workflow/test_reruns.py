"""Rerun only what changed: after a finished pipeline, each kind of change schedules its own stages and no others."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from netless import WITHOUT_NETWORK, may_leave_network
from onestep.files import read_json
from tiny import selecting_config, write_config

FRECHET = ("metrics/frechet.py", "return {", "_edited = 1\n        return {")
D2O = (
    "objectives/d2o.py",
    "def phases(self) -> tuple[Phase, ...]:",
    "edited: ClassVar[int] = 1\n\n    def phases(self) -> tuple[Phase, ...]:",
)


def edit(pipeline, change):
    """Replace text in one file of the copied package."""
    name, old, new = change
    path = pipeline.package / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.fixture
def pipeline(finished, tmp_path):
    return finished.copy(tmp_path)


def test_a_finished_pipeline_has_nothing_to_do(finished):
    assert not finished.due()


@pytest.mark.skipif(not may_leave_network(), reason="this machine does not let its users have networks of their own")
def test_all_of_it_ran_where_there_is_no_network(finished):
    assert (finished.work / "results/report/index.html").exists()
    with socket.create_server(("127.0.0.1", 0)) as server:
        call = f"import socket; socket.create_connection({server.getsockname()!r}, timeout=5)"
        reached = [
            subprocess.run([*within, sys.executable, "-c", call], capture_output=True)
            for within in ((), WITHOUT_NETWORK)
        ]
    assert [each.returncode == 0 for each in reached] == [True, False]


def test_a_job_of_several_files_lists_them_in_the_order_in_which_they_are_made(pipeline):
    """Snakemake sets their times one by one, and would extract again features that are older than their images."""
    for folder in ("samples", "grids", "features", "metrics"):
        shutil.rmtree(pipeline.work / "results" / folder)
    lines = [line.split("\t") for line in pipeline.snakemake("--summary").stdout.splitlines()]
    files = [Path(line[0]) for line in lines if "observe_digits" in line]
    kinds = [path.parts[1] for path in files]
    assert len(kinds) > 3 and kinds == ["samples", "grids", "features"] * (len(kinds) // 3)


def test_the_table_has_its_rows_and_names(finished):
    rows = read_json(finished.work / "results/tables/digits.json")
    assert [(row["run"], row["sampler"], row["nfe"]) for row in rows] == [
        ("digits_edm", "heun", 5),
        ("digits_edm", "one_step", 1),
        ("digits_d2o", "one_step", 1),
        ("digits_d2o_f", "one_step", 1),
    ]
    for row in rows:
        assert set(row["metrics"]) == {"fd", "is", "precision", "recall"}
        assert all(isinstance(value, float) for value in row["metrics"].values())


def test_comments_docstrings_and_formatting_rerun_nothing(pipeline):
    for path in pipeline.package.rglob("*.py"):
        path.write_text(path.read_text() + "\n\n# a comment at the end\n")
    edit(pipeline, ("metrics/frechet.py", '"""', '"""Edited. '))
    assert not pipeline.due()


def test_the_snapshot_with_the_best_number_stands_in_the_table_that_asks_for_it(finished):
    results = finished.work / "results"
    chosen, other = read_json(results / "tables/chosen.json")
    values = {
        images: read_json(results / f"metrics/digits_d2o@{images}-ema4/one_step/0-31.fd.json")["values"]["frechet"]
        for images in (160, 320)
    }
    images = min(values, key=values.get)
    assert chosen["snapshot"] == f"digits_d2o@{images}-ema4"
    assert (chosen["images_seen"], chosen["ema"]) == (images, 4)
    assert chosen["snapshot_policy"] == "lowest FD of 2, seeds 0-31"
    assert chosen["metrics"]["fd"] == pytest.approx(values[images], rel=1e-12)
    weights = results / "selections" / f"{chosen['model']}.safetensors"
    snapshots = results / "runs/digits_d2o/snapshots"
    assert weights.read_bytes() == (snapshots / f"{images}-ema4.safetensors").read_bytes()
    assert weights.read_bytes() != (snapshots / f"{images}.safetensors").read_bytes()
    assert (other["run"], other["metrics"]["fd"], other["published"], other["sources"]) == (
        None,
        None,
        {"fd": 1.5},
        {"fd": "A Paper"},
    )
    page = (results / "report/index.html").read_text()
    assert "lowest FD of 2, seeds 0-31" in page and "[1] A Paper" in page


def test_the_frechet_distances_code_reruns_its_measurements_and_what_they_chose_alone(pipeline):
    edit(pipeline, FRECHET)
    due, files = pipeline.due_with_files()
    assert set(due) == {"measure", "select", "sample", "extract", "tabulate", "report"}
    assert (due["select"], due["sample"], due["extract"]) == (1, 1, 1)
    parts = (".fd.json", "@best-fd.frechet-", "tables/", "report/")
    assert all(any(part in path for part in parts) for path in files)


def test_a_metric_that_is_added_later_is_measured_alone(pipeline):
    config = selecting_config()
    config["metrics"]["pr5"] = config["metrics"]["pr"] | {"neighbours": 5}
    config["tables"]["digits"]["columns"]["precision_5"] = "pr5.precision"
    write_config(pipeline.work, config)
    due, files = pipeline.due_with_files()
    assert set(due) == {"measure", "tabulate", "report"}
    assert all(any(part in path for part in (".pr5.json", "tables/", "report/")) for path in files)


def test_another_name_of_the_config_reruns_nothing(pipeline):
    (pipeline.work / "config.yaml").rename(pipeline.work / "other.yaml")
    dry = pipeline.snakemake("--dry-run", "--config", "experiment=other.yaml")
    assert dry.returncode == 0 and "Nothing to be done" in dry.stdout + dry.stderr


def test_what_is_added_beside_an_edit_that_trains_nothing_is_made_in_the_same_call(pipeline):
    config = selecting_config()
    config["runs"]["digits_metric"]["non_finite_limit"] = 0.5
    config["runs"]["digits_d2o_f"]["images"] = 160
    config["metrics"]["pr5"] = config["metrics"]["pr"] | {"neighbours": 5}
    config["tables"]["digits"]["columns"]["precision_5"] = "pr5.precision"
    write_config(pipeline.work, config)
    due, files = pipeline.due_with_files()
    assert {"measure", "tabulate", "report"} <= set(due) and not {"resolve", "train_digits_d2o_f"} & set(due)
    assert "results/tables/digits.md" in files
    pipeline.run()
    assert "precision_5" in (pipeline.work / "results/tables/digits.csv").read_text()
    assert not pipeline.due()


def test_a_runs_option_reruns_that_run_alone(pipeline):
    config = selecting_config()
    config["runs"]["digits_d2o_f"]["objective"]["r1_gamma"] = 0.5
    write_config(pipeline.work, config)
    due, files = pipeline.due_with_files()
    again = {"observe_digits", "measure_fd_and_is_and_pr", "measure"}
    assert set(due) == {"resolve", "train_digits_d2o_f", "tabulate", "report", *again}
    assert due["resolve"] == 1
    assert all("digits_d2o_f" in path or "tables/" in path or "report/" in path for path in files)


@pytest.mark.long
def test_training_code_marks_the_table_and_trains_again_only_when_told(pipeline):
    edit(pipeline, D2O)
    assert set(pipeline.due()) == {"tabulate", "report"}
    pipeline.run()
    rows = {row["run"]: row for row in read_json(pipeline.work / "results/tables/digits.json")}
    assert [rows[run]["trained_with_other_code"] for run in ("digits_edm", "digits_d2o", "digits_d2o_f")] == [
        False,
        True,
        True,
    ]
    assert "other code" in (pipeline.work / "results/tables/digits.md").read_text()

    config = selecting_config()
    config["rerun"]["training_on_code_change"] = True
    write_config(pipeline.work, config)
    due = pipeline.due()
    assert {"train_digits_d2o", "train_digits_d2o_f"} <= set(due)


@pytest.mark.long
def test_a_fresh_clone_over_the_same_results_reruns_nothing(pipeline, tmp_path):
    def git(*arguments, folder):
        identity = ["-c", "user.name=test", "-c", "user.email=test@example.invalid"]
        subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)

    git("init", "--quiet", folder=pipeline.repository)
    git("add", "--all", folder=pipeline.repository)
    git("commit", "--quiet", "--message", "all", folder=pipeline.repository)
    clone = tmp_path / "clone"
    git("clone", "--quiet", str(pipeline.repository), str(clone), folder=tmp_path)
    shutil.rmtree(pipeline.repository)
    write_config(pipeline.work, selecting_config())
    assert not type(pipeline)(clone, pipeline.work).due()


def test_editing_a_site_setting_reruns_nothing(pipeline):
    profile = pipeline.repository / "profiles/local/config.v8+.yaml"
    profile.write_text(profile.read_text() + "\nset-threads:\n  - sample=2\n")
    dry = pipeline.snakemake("--dry-run", "--profile", str(profile.parent))
    assert dry.returncode == 0 and "Nothing to be done" in dry.stdout + dry.stderr


def test_where_jobs_run_and_in_which_image_reruns_nothing(pipeline):
    config = selecting_config()
    config["container"] = "docker://ghcr.io/example/onestep:0.1"
    config["launch"] |= {"gpus": "gres", "gpu_type": "a100", "cpus_per_process": 8, "partition": "other"}
    write_config(pipeline.work, config)
    assert not pipeline.due()


def test_the_profile_for_slurm_plans_the_same_jobs_without_a_cluster(pipeline):
    (pipeline.work / "results/tables/digits.md").unlink()
    dry = pipeline.snakemake("--dry-run", "--profile", str(pipeline.repository / "profiles/slurm"))
    assert dry.returncode == 0, dry.stderr
    assert "In all: 1 tabulate, 1 report" in dry.stdout + dry.stderr
