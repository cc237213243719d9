"""`onestep doctor` on a real SLURM, with accounting on and off."""

from __future__ import annotations

import subprocess
import sys

import pytest
import yaml

from tiny import tiny_config, write_config

pytestmark = pytest.mark.slurm

HEADING = "Put into your profile:"


@pytest.fixture
def folder(tmp_path):
    config = tiny_config()
    config["launch"] |= {
        "backend": "auto",
        "device": "cuda",
        "gpus": "gres",
        "gpu_type": "a100",
        "processes_per_node": 8,
    }
    write_config(tmp_path, config)
    return tmp_path


@pytest.fixture
def without_accounting(slurm):
    slurm.stop_accounting()
    yield
    slurm.start_accounting()


def examined(folder, environment):
    """Run `onestep doctor`; return its lines by subject, and the keys for the profile."""
    command = [sys.executable, "-m", "onestep", "doctor", "--config", str(folder / "config.yaml")]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    findings, _, profile = ended.stdout.partition(HEADING)
    return {
        line[6:].partition(":")[0].partition(" (")[0]: line for line in findings.splitlines() if line
    }, yaml.safe_load(profile)


def test_with_accounting_snakemake_may_query_sacct(slurm, folder):
    found, profile = examined(folder, slurm.environment)
    assert found["accounting"].startswith("ok ")
    assert all(found[program].startswith("ok ") for program in ("sbatch", "squeue", "scontrol", "scancel", "srun"))
    assert "main" in found["partitions"] and "gpu:a100:8" in found["partitions"]
    assert found["job of launch"].startswith("ok ")
    assert profile["executor"] == "slurm" and "slurm-status-command" not in profile


def test_without_accounting_snakemake_must_query_squeue(slurm, folder, without_accounting):
    found, profile = examined(folder, slurm.environment)
    assert found["accounting"].startswith("note")
    assert profile["slurm-status-command"] == "squeue"
