"""Fixtures of the attack: processes that begin imported, and one finished pipeline."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from forks import Forks
from pipeline import Builder, Finished


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """The parent of the processes that run verbs."""
    with Forks() as started:
        yield started


@pytest.fixture(scope="session")
def finished(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The finished pipeline with all its stages."""
    return Builder(forks, tmp_path_factory.mktemp("finished") / "work").build()


@pytest.fixture(scope="session")
def outside(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """What comes from outside, and the stages that read it first."""
    return Builder(forks, tmp_path_factory.mktemp("outside") / "work").build_from_outside()
