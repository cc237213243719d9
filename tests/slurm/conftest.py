"""A real SLURM, up while these tests run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm_cluster import NODES, CannotHaveSlurm, Slurm, running, until
from workplace import Workplace


@pytest.fixture(scope="session")
def cluster() -> Iterator[Slurm]:
    """The cluster; skipped where this machine cannot have one, unless ONESTEP_SLURM=required."""
    try:
        with running() as slurm:
            yield slurm
    except CannotHaveSlurm as lacking:
        if os.environ.get("ONESTEP_SLURM") == "required":
            pytest.fail(str(lacking), pytrace=False)
        pytest.skip(str(lacking))


@pytest.fixture
def slurm(cluster: Slurm) -> Iterator[Slurm]:
    """The cluster, whole and without a job before and after each test."""
    yield cluster
    cluster.restore()


@pytest.fixture(scope="session")
def untrained(cluster: Slurm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workplace]:
    """A working directory with all that a run needs."""
    place = Workplace(folder=tmp_path_factory.mktemp("untrained"), slurm=cluster)
    place.configure()
    place.prepare()
    yield place
    place.clear_up()


@pytest.fixture(scope="session")
def reference(untrained: Workplace, tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """A run that was not disturbed, from Snakemake to its results."""
    place = untrained.copy(tmp_path_factory.mktemp("reference") / "work")
    place.snakemake().ends(0)
    return place


@pytest.fixture
def place(slurm: Slurm, untrained: Workplace, tmp_path: Path) -> Iterator[Workplace]:
    """A working directory whose run was never trained."""
    place = untrained.copy(tmp_path / "work")
    yield place
    place.clear_up()


@pytest.fixture
def full(slurm: Slurm) -> int:
    """A cluster without room, which the job of this id takes: others wait until it is cancelled."""
    job = slurm.submit("sleep 3600", "--nodes", str(len(NODES)), "--exclusive")
    until(lambda: slurm.state(job) == "RUNNING", seconds=30, what="the cluster is full")
    return job
