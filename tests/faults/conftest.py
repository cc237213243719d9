"""Fixtures of the attack: processes that begin imported, and one finished pipeline."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from forks import Forks
from pipeline import Builder, Finished

_FOLDER = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave the first input of each test to `make test`, the others to `make test-faults`."""
    seen = set()
    for item in items:
        if Path(item.path).parent != _FOLDER:
            continue
        name = item.nodeid.partition("[")[0]
        if name in seen and item.path.name.startswith("test_cases_"):
            item.add_marker(pytest.mark.faults)
        seen.add(name)


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
