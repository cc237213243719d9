"""Runs verbs in processes that begin with everything imported: forks of one Python, bounded in time and memory.

`python forks.py` is the parent of the forks. It reads one request a line from stdin and writes one answer a line.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SOURCE = Path(__file__).parents[2] / "src"
GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a process ended. `code` is None if it was killed at its time limit, negative for a signal."""

    code: int | None
    text: str
    seconds: float


class Forks:
    """The parent, seen from a test."""

    def __init__(self) -> None:
        variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(_SOURCE), "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, __file__]
        self._process = subprocess.Popen(
            command, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )

    def __enter__(self) -> Forks:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)
        self._process.stdout.close()

    def onestep(self, *words: object, folder: Path, **bounds: Any) -> Ended:
        """Run one verb in `folder`."""
        return self._ask({"words": [str(word) for word in words], "folder": str(folder), **bounds})

    def call(self, function: str, *arguments: Any, folder: Path, **bounds: Any) -> Ended:
        """Call `module:function` of this folder; its text is what it prints."""
        return self._ask({"call": function, "arguments": arguments, "folder": str(folder), **bounds})

    def _ask(self, request: Mapping[str, Any]) -> Ended:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return Ended(**json.loads(self._process.stdout.readline()))


def _serve() -> None:
    """Answer requests until stdin ends."""
    _import_everything()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        with tempfile.TemporaryFile() as output:
            code, seconds = _run(request, output.fileno())
            output.seek(0)
            # As much as is shown; a verb that prints without end would fill the memory here.
            text = output.read(2**20).decode("utf-8", errors="replace")
        answers.write(json.dumps({"code": code, "text": text, "seconds": seconds}) + "\n")
        answers.flush()


def _import_everything() -> None:
    import onestep

    for module in pkgutil.walk_packages(onestep.__path__, "onestep."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name in ("torch", "scipy.linalg", "safetensors.torch", "matplotlib.pyplot", "PIL.PngImagePlugin", "timm"):
        importlib.import_module(name)
    import torch

    torch.set_num_threads(1)


def _run(request: Mapping[str, Any], output: int) -> tuple[int | None, float]:
    """Run one request in a fork and return its exit code."""
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        _become(request, output)
    deadline = started + float(request.get("limit", 20.0))
    idle, pause, last = time.monotonic(), 0.002, ""
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        now = time.monotonic()
        if ended:
            return os.waitstatus_to_exitcode(status), now - started
        if (seen := _activity(child)) != last or not seen:
            idle, last = now, seen
        if now > deadline or (request.get("idle") and now - idle > float(request["idle"])):
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None, now - started
        time.sleep(pause)
        pause = min(0.1, 1.5 * pause)


def _activity(process: int) -> str:
    """Return a text that stays the same while a process waits and does nothing; empty if it is ready to run."""
    state, *numbers = Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2].split()
    return "" if state == "R" else " ".join(numbers[10:12])


def _become(request: Mapping[str, Any], output: int) -> None:
    """Be the process that was asked for, and end."""
    code = 1
    try:
        os.setsid()
        os.chdir(request["folder"])
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + int(request.get("memory", 2 * GIB))
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        os.environ.update(request.get("variables", {}))
        code = _carry_out(request)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _carry_out(request: Mapping[str, Any]) -> int:
    if "words" in request:
        from onestep.cli import main

        return main(request["words"])
    module, _, name = request["call"].partition(":")
    arguments: Sequence[Any] = request["arguments"]
    sys.path.insert(0, str(Path(__file__).parents[1]))
    getattr(importlib.import_module(module), name)(*arguments)
    return 0


if __name__ == "__main__":
    _serve()
