"""Fixtures shared by all tests: the recordings of the reference implementations."""

from __future__ import annotations

import functools
import json
import os
import re
import sys
import zlib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

# Before torch is imported: threads that wait for each other sleep. Two processes of two threads on two cores, each
# spinning while it waits, would take ten times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# The processes that tests start keep what they compile for those after them.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def pytest_configure(config: pytest.Config) -> None:
    """Show GPUs to the tests of GPUs alone: others start more ranks than a machine may have GPUs."""
    if "gpu" not in config.option.markexpr:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


class Golden:
    """A folder of arrays recorded from the reference implementations, with its manifest."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text())

    @property
    def parameters(self) -> dict[str, Any]:
        """Constants of the recordings: salts, seeds, hyperparameters."""
        return self.manifest["parameters"]

    def load(self, name: str) -> dict[str, np.ndarray]:
        """Return all arrays of an .npz file, which must hold no pickles."""
        with np.load(self._path(name), allow_pickle=False) as archive:
            return dict(archive)

    def json(self, name: str) -> Any:
        """Return a .json file."""
        return json.loads(self._path(name).read_text())

    def _path(self, name: str) -> Path:
        """Return where a file is; recordings whose manifest does not list it were made without it."""
        if name not in self.manifest["files"]:
            pytest.skip(f"{self.folder}: these recordings hold no {name}, and their manifest lists none")
        return self.folder / name

    def constructor_kwargs(self, name: str) -> dict[str, Any]:
        """Return the reference constructor's arguments for a recorded network."""
        return self.manifest["files"][name]["constructor_kwargs"]

    def said(self, group: str, pattern: str) -> str:
        """Return what `pattern` captures in the manifest's words on a group of files."""
        words = self.manifest["groups"][group]["what"]
        found = re.search(pattern, words)
        assert found, f"the manifest of {self.folder} does not say {pattern!r} of {group}: {words}"
        return found[1]

    @staticmethod
    def cases(arrays: dict[str, np.ndarray], *, parts: int = 1) -> list[str]:
        """Return the names before the slashes of an .npz file's keys, of which there is at least one."""
        found = {"/".join(key.split("/")[:parts]) for key in arrays if key.count("/") >= parts}
        assert found, "the file holds no case"
        return sorted(found)

    @staticmethod
    def stride(have: int, shown: int) -> int:
        """Return the n of a recording `[::n]` that left `shown` of `have` entries: a power of two if one fits."""
        fitting = [n for n in range(1, have + 1) if -(-have // n) == shown]
        assert fitting, f"no stride leaves {shown} of {have}"
        return next((n for n in fitting if n & (n - 1) == 0), fitting[0])

    @staticmethod
    def normal(salt: str, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """Regenerate the float64 standard normal numbers of the recipe, by the name of the tensor."""
        seed = zlib.crc32(f"{salt}:{name}".encode()) & 0x7FFFFFFF
        count = int(np.prod(shape)) if shape else 1
        return np.random.RandomState(seed).standard_normal(count).reshape(shape)

    @classmethod
    def recipe(cls, salt: str, name: str, shape: tuple[int, ...]) -> np.ndarray | None:
        """Regenerate one recipe weight as float32; None where the constructor's value stays."""
        leaf = name.rsplit(".", 1)[-1]
        if leaf in ("resample_filter", "num_batches_tracked"):
            return None
        numbers = cls.normal(salt, name, shape)
        if leaf == "freqs":
            numbers = 16 * numbers
        elif leaf in ("running_var", "var"):
            numbers = 1 + 0.2 * np.tanh(numbers)
        elif leaf in ("running_mean", "mean"):
            numbers = 0.1 * numbers
        elif leaf in ("weight_u", "weight_v"):
            numbers = numbers / np.linalg.norm(numbers)
        elif leaf in ("cls_token", "dist_token", "pos_embed"):
            numbers = 0.1 * numbers
        elif len(shape) >= 2:
            numbers = numbers / np.sqrt(np.prod(shape[1:]))
        elif len(shape) == 1 and leaf == "weight":
            numbers = 1 + 0.1 * numbers
        else:
            numbers = 0.1 * numbers
        return numbers.astype(np.float32)


@pytest.fixture(scope="session")
def golden() -> Golden:
    """The recordings named by ONESTEP_GOLDEN, or the project's own copy."""
    return Golden(Path(os.environ.get("ONESTEP_GOLDEN", Path(__file__).parent / "golden")))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Hide GPUs from all tests but those marked `gpu`: the others compare bits, and start more ranks than GPUs."""
    with pytest.MonkeyPatch.context() as patch:
        if item.get_closest_marker("gpu") is None:
            patch.setenv("CUDA_VISIBLE_DEVICES", "")  # for the processes that they start
            if "torch" in sys.modules:
                patch.setattr("torch.cuda.is_available", lambda: False)
                patch.setattr("torch.cuda.device_count", lambda: 0)
        return (yield)


# A machine with a GPU may lack these; no test for a GPU needs them.
_NOT_FOR_GPUS = ("pydantic", "submitit", "torch_fidelity")


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    """With `-m gpu`, skip the files that need a package which is not there."""
    report = yield
    lacking = [name for name in _NOT_FOR_GPUS if find_spec(name) is None]
    needed = [name for name in lacking if f"No module named '{name}" in str(report.longrepr)]
    if report.failed and needed and collector.config.option.markexpr == "gpu":
        report.outcome, report.longrepr = "skipped", (str(collector.path), 0, f"Skipped: needs {needed[0]}")
    return report


# Their tests share preparations of a minute each, so one process takes all of a folder.
_TOGETHER = ("tests/training/", "tests/workflow/", "tests/faults/", "tests/metrics/test_against_torch_fidelity.py")


def _shared(nodeid: str) -> str | None:
    return next((folder for folder in _TOGETHER if nodeid.startswith(folder)), None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what shares a long preparation: begun last, it would leave the other process idle."""
    items.sort(key=lambda item: _shared(item.nodeid) is None)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep those folders together, and files that prepare something once for all of their tests.

    The groups of pytest-xdist have no effect with pytest 9.2.
    """
    from xdist.scheduler import LoadScopeScheduling

    @functools.cache
    def prepares(file: str) -> bool:
        return 'scope="module"' in (config.rootpath / file).read_text()

    class Folders(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file, _, _ = nodeid.partition("::")
            return _shared(nodeid) or (file if prepares(file) else nodeid)

    return Folders(config, log)
