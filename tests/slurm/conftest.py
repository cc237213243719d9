"""A real SLURM, up while these tests run."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from slurm_cluster import CannotHaveSlurm, Slurm, running


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
