"""A submission: sbatch's answers, a site without a program, and the environment of a job."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest

from onestep.config.sections import Launch
from onestep.launch.journal import Journal
from onestep.launch.local import without_ranks
from onestep.launch.submission import Refused, Request, job_id_of, submit
from onestep.training.assignment import Assignment, Inputs

ANSWERS = {
    "Submitted batch job 71\n": "71",
    "Submitted batch job 71 on cluster other\n": "71",
    "71\n": "71",
    "71;other\n": "71",
    "sbatch: lua: welcome to 2 clusters\n  71 \n": "71",
}


@pytest.fixture
def request_(tmp_path):
    """What submits a run from `tmp_path`."""
    (tmp_path / "run.yaml").write_text("run: r\n")
    inputs = Inputs(run=tmp_path / "run.yaml", data=tmp_path / "d.zip")
    assignment = Assignment(inputs=inputs, state=tmp_path, code_in_spec=False, state_seconds=300.0)
    return Request(run="r", assignment=assignment, site=Launch())


@pytest.mark.parametrize("answer", ANSWERS)
def test_a_job_is_known_by_any_answer_of_sbatch(answer):
    assert job_id_of(answer) == ANSWERS[answer]


@pytest.mark.parametrize("answer", ["", "queued\n", "job x\n"])
def test_an_answer_without_a_job_is_no_submission(answer):
    with pytest.raises(Refused, match="sbatch"):
        job_id_of(answer)


@pytest.mark.parametrize("missing", ["srun", "sbatch", "squeue"])
def test_a_site_without_a_program_is_one_line(program, request_, tmp_path, missing):
    for name in {"srun", "sbatch", "squeue"} - {missing}:
        program(name)
    with pytest.raises(ValueError, match=f"launch.backend: got no {missing} in PATH") as error:
        submit(request_, journal=Journal(tmp_path / "work"), attempt=0)
    assert len(str(error.value).splitlines()) == 1 and not Journal(tmp_path / "work").is_submitting


@pytest.mark.parametrize("name", ["a%j", "a\nb", "a\\b"])
def test_a_folder_that_slurm_would_read_otherwise_is_refused(program, request_, tmp_path, name):
    for each in ("srun", "sbatch", "squeue"):
        program(each)
    with pytest.raises(ValueError, match="logs") as error:
        submit(request_, journal=Journal(tmp_path / name), attempt=0)
    assert len(str(error.value).splitlines()) == 1


def test_a_job_inherits_no_ranks_and_no_gpus_and_keeps_pythonpath(program, request_, tmp_path, monkeypatch):
    left = {
        "CUDA_VISIBLE_DEVICES": "3",
        "RANK": "1",
        "WORLD_SIZE": "4",
        "GROUP_RANK": "0",
        "PMIX_RANK": "1",
        "PMI_FD": "5",
    }
    left |= {"OMPI_COMM_WORLD_RANK": "1", "TORCHELASTIC_USE_AGENT_STORE": "True", "LOCAL_WORLD_SIZE": "4"}
    for key, value in (left | {"MY_TOKEN": "kept", "PYTHONPATH": f"{tmp_path / 'my modules'}::lib"}).items():
        monkeypatch.setenv(key, value)
    monkeypatch.chdir(tmp_path)
    for each in ("srun", "squeue"):
        program(each)
    copied = f'while read -r line; do echo "$line"; done < $1 > {tmp_path}/script'
    program("sbatch", "71", script=f"export -p > {tmp_path}/environment; {copied}")
    assert submit(request_, journal=Journal(tmp_path / "work"), attempt=0).job_id == "71"
    environment = (tmp_path / "environment").read_text()
    assert "MY_TOKEN" in environment
    assert not [key for key in left if f"export {key}=" in environment or f"{key}=" in environment]
    (line,) = [line for line in (tmp_path / "script").read_text().splitlines() if line.startswith("export PYTHONPATH=")]
    assert shlex.split(line)[1].partition("=")[2].split(os.pathsep) == [
        str(Path(each).resolve()) for each in (tmp_path / "work/code", tmp_path / "my modules", tmp_path / "lib")
    ]


def test_ranks_keep_all_else_of_an_environment():
    left = dict.fromkeys(
        ["RANK", "PMI_RANK", "PMIX_ID", "OMPI_X", "TORCHELASTIC_RUN_ID", "GROUP_RANK", "MASTER_PORT"], "1"
    )
    kept = {"PATH": "/bin", "CUDA_VISIBLE_DEVICES": "1", "PYTHONPATH": "a", "RANKING": "1", "NCCL_DEBUG": "INFO"}
    assert without_ranks(left | kept) == kept
