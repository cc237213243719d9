"""From config to table and page on a SLURM: a training is a job of eight ranks with a GPU each, a rule a small one."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
from slurm_cluster import Job, Slurm

from onestep.files import read_json
from tiny import REPOSITORY

pytestmark = pytest.mark.slurm

HERE = Path(__file__).parent
RUNS = ("digits_backbone", "digits_metric", "digits_edm", "digits_d2o", "digits_d2o_f")
WITH_ONE_GPU = Counter({"blocks": 3, "extract_real": 1})
WITHOUT_GPU = Counter({"prepare": 1, "convert": 1})


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """A working directory, and the cluster on which it is worked; other tests' jobs are those up to `earlier`."""

    work: Path
    slurm: Slurm
    earlier: int

    def snakemake(self) -> str:
        """Run it to its end with the profile as it is; return Snakemake's output."""
        profile = str(REPOSITORY / "profiles" / "slurm")
        command = [sys.executable, "-m", "snakemake", "--snakefile", str(REPOSITORY / "Snakefile")]
        command += ["--profile", profile, "--directory", str(self.work)]
        path = [str(HERE / "quickpoll"), str(REPOSITORY / "src"), self.slurm.environment.get("PYTHONPATH", "")]
        environment = {**self.slurm.environment, "PYTHONPATH": os.pathsep.join(filter(None, path))}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def trainings(self, run: str) -> list[Job]:
        """Return the jobs that trained a run."""
        return [job for job in self._jobs() if job.name.startswith(f"onestep-{run}-")]

    def rules(self) -> list[tuple[str, Job]]:
        """Return the jobs that Snakemake submitted, each with its rule, or `blocks` for a group of jobs."""
        jobs = [job for job in self._jobs() if job.comment.startswith("rule_")]
        named = [(job.comment.removeprefix("rule_").partition("_wildcards_")[0], job) for job in jobs]
        return [("blocks" if name.startswith("blocks_") else name, job) for name, job in named]

    def _jobs(self) -> list[Job]:
        return [job for job in self.slurm.jobs() if job.id > self.earlier]


@pytest.fixture(scope="module")
def finished(cluster: Slurm, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """The pipeline after its first run."""
    earlier = max((job.id for job in cluster.jobs()), default=0)
    pipeline = Pipeline(work=tmp_path_factory.mktemp("pipeline"), slurm=cluster, earlier=earlier)
    (pipeline.work / "config.yaml").write_text((HERE / "config.yaml").read_text())
    pipeline.snakemake()
    return pipeline


def test_table_and_page_are_there(finished):
    table = read_json(finished.work / "results/tables/digits.json")
    assert [row["run"] for row in table] == ["digits_edm", "digits_d2o", "digits_d2o_f"]
    assert all(math.isfinite(value) for row in table for value in row["metrics"].values())
    assert "Digits, 16x16" in (finished.work / "results/report/index.html").read_text()


@pytest.mark.parametrize("run", RUNS)
def test_a_training_is_one_job_of_eight_ranks_with_eight_gpus(finished, run):
    (job,) = finished.trainings(run)
    assert job.state == "COMPLETED"
    for resources in (job.requested, job.allocated):
        assert (resources["gres/gpu:a100"], resources["cpu"], resources["node"]) == ("8", "8", "1")
    (ranks,) = finished.slurm.sacct("--jobs", f"{job.id}.0", "--format", "NTasks").split()
    assert ranks == "8"
    assert read_json(finished.work / f"results/runs/{run}/summary.json")["world_size"] == 8


def test_all_else_is_single_gpu_jobs_and_jobs_without(finished):
    gpus = {"1": Counter(), "0": Counter()}
    for rule, job in finished.rules():
        assert job.state == "COMPLETED", (rule, job)
        assert job.requested["node"] == job.allocated["node"] == "1"
        assert job.requested.get("gres/gpu:a100") == job.allocated.get("gres/gpu:a100")
        gpus[job.allocated.get("gres/gpu:a100", "0")][rule] += 1
    assert gpus == {"1": WITH_ONE_GPU, "0": WITHOUT_GPU}


def test_a_second_call_does_nothing(finished):
    before = finished.slurm.jobs()
    assert "Nothing to be done" in finished.snakemake()
    assert finished.slurm.jobs() == before
