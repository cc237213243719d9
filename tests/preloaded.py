"""Processes that begin with torch and the package imported: forks of one that imported them once.

An import of both takes seconds of a core, more than most of these processes compute.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
from collections.abc import Mapping
from multiprocessing import forkserver
from pathlib import Path

import pytest

import onestep

ONESTEP = Path(onestep.__file__).with_name("__main__.py")
# Those that are not found are left to each process.
_IMPORTED = (
    "torch._dynamo",  # torch imports it at the first step of an optimizer
    "torch.distributed",
    "torch.optim",
    "torch.utils.tensorboard",
    "onestep.cli",
    "onestep.training.verbs",
    "onestep.training.run",
    "onestep.watching",
    "onestep.launch.local",
    "onestep.data.image_zip",
    "onestep.networks.song_unet",
    "onestep.classifiers.convnet",
    "onestep.discriminators.projected",
    "onestep.objectives.cross_entropy",
    "onestep.objectives.d2o",
    "onestep.objectives.edm",
    "onestep.objectives.density_ratio",
    "onestep.objectives.frechet",
    "onestep.objectives.instance",
    "onestep.objectives.kernel",
    "onestep.distances.features",
    "onestep.ratios.ratio_unet",
)


class Program:
    """A Python file in a process of one thread that leads a group: `python FILE ARGUMENTS`, to be used as a Popen."""

    def __init__(
        self,
        file: Path,
        *arguments: str,
        environment: Mapping[str, str],
        folder: Path | None = None,
        apart: bool = False,
    ) -> None:
        """Start it in `folder`; with `environment` as its whole environment, and the modules' path of this process.

        What it writes to stderr is kept `apart` from what it says, or is part of it.
        """
        self._said = _empty_file()
        self._complained = _empty_file() if apart else None
        written = [str(self._said), str(self._complained or self._said)]
        self._process = _forks().Process(
            target=_carry_out, args=(str(file), arguments, dict(environment), written, folder), daemon=True
        )
        self._process.start()

    @property
    def pid(self) -> int:
        """The number of the process."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""
        return self._process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it."""
        self.send_signal(signal.SIGKILL)

    def communicate(self, *, timeout: float | None = None) -> tuple[str, str | None]:
        """Wait for its end, and return what it said, and what it wrote to stderr if that is kept apart."""
        self._process.join(timeout)
        assert self.returncode is not None, f"it still runs after {timeout} s"
        said, complained = (None if each is None else each.read_text() for each in (self._said, self._complained))
        assert said is not None
        for each in filter(None, (self._said, self._complained)):
            each.unlink()
        return said, complained


def _empty_file() -> Path:
    descriptor, name = tempfile.mkstemp()
    os.close(descriptor)
    return Path(name)


@functools.cache
def _forks() -> multiprocessing.context.ForkServerContext:
    """Return the context of the forks, after the import."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_IMPORTED))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # read when torch is imported
        forkserver.ensure_running()
    return context


def _carry_out(
    file: str, arguments: tuple[str, ...], environment: dict[str, str], written: list[str], folder: Path | None = None
) -> None:
    os.setsid()
    for descriptor, name in enumerate(written, start=1):
        os.dup2(os.open(name, os.O_WRONLY | os.O_APPEND), descriptor)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder or Path())
    sys.argv = [file, *arguments]
    runpy.run_path(file, run_name="__main__")
