"""Benchmark records: one JSON file each, of what was measured, with which code, by which command, on which machine.

Imports no torch: the workflow records itself on machines without it.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import onestep
from onestep.files import read_json, sealed, write_json

_ROOT = Path(onestep.__file__).parents[2]
_OF_COPY = _ROOT / ".gpu" / "commit.json"
_TEXT_OR_NONE, _NUMBER_OR_NONE = (str, None), (float, None)
_SHAPE = {
    **dict.fromkeys(("name", "about", "command", "source_sha256", "date", "torch", "python"), str),
    "commit": _TEXT_OR_NONE,
    "clean": (bool, None),
    "machine": {"processor": str, "cores": int, "memory_gib": float, "gpu": _TEXT_OR_NONE},
    **dict.fromkeys(("seconds", "cpu_seconds"), float),
    **dict.fromkeys(("images_per_second", "memory_mib"), _NUMBER_OR_NONE),
    "numbers": {str: (float, str, None)},
    "details?": dict,
}
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_DATE = "%Y%m%dT%H%M%SZ"


@dataclass(frozen=True)
class Stopwatch:
    """Seconds since it was made: of the clock, and of processors by this process and those that it has waited for.

    It also keeps the digest of the code, which may be edited during a long measurement.
    """

    _source: str = field(default_factory=lambda: source_digest())
    _began: float = field(default_factory=time.perf_counter)
    _worked: float = field(default_factory=lambda: _cpu_seconds())

    def read(self) -> dict[str, Any]:
        """Return `seconds`, `cpu_seconds` and `source_sha256`."""
        seconds = {"seconds": time.perf_counter() - self._began, "cpu_seconds": _cpu_seconds() - self._worked}
        return {**seconds, "source_sha256": self._source}


def _cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def write_benchmark(
    folder: Path,
    *,
    name: str,
    about: str,
    took: Mapping[str, Any],
    numbers: Mapping[str, float | str | None],
    command: Sequence[str] | None = None,
    gpu: str | None = None,
    images_per_second: float | None = None,
    memory_mib: float | None = None,
    details: Mapping[str, Any] | None = None,
) -> Path:
    """Write a record into `folder` and return its path, `{name}-{UTC}.json`.

    Args:
        folder: The folder; it is made.
        name: What was measured, in lower case with underscores; records of one name are compared.
        about: The same in a sentence.
        took: `Stopwatch.read()` of the measurement; if the code has changed since, the record is not `clean`.
        numbers: What was found, by name; a text where something failed.
        command: The command, split as by a shell; None for that of this process.
        gpu: Name of the GPU that was used; None for a measurement on processors.
        images_per_second: Headline of a speed, in images a second.
        memory_mib: Peak memory, in MiB: of the GPU if there was one, else resident.
        details: Anything else, as JSON.

    Raises:
        ValueError: A number is not finite, or the record does not have the shape of one.
    """
    now = datetime.now(UTC)
    commit, clean = _commit()
    today = source_digest()
    source = took.get("source_sha256", today)
    record: dict[str, Any] = {
        "name": name,
        "about": about,
        "command": shlex.join(map(_without_place, _own_command() if command is None else command)),
        "commit": commit,
        "clean": clean and source == today,
        "source_sha256": source,
        "date": now.isoformat(timespec="seconds"),
        "machine": {**machine(), "gpu": gpu},
        "torch": _version("torch"),
        "python": platform.python_version(),
        "seconds": took["seconds"],
        "cpu_seconds": took["cpu_seconds"],
        "images_per_second": images_per_second,
        "memory_mib": memory_mib,
        "numbers": dict(numbers),
    }
    record |= {} if details is None else {"details": dict(details)}
    path = folder / f"{name}-{now.strftime(_DATE)}.json"
    write_json(path, sealed(record))
    read_benchmark(path)
    return path


def read_benchmark(path: Path) -> dict[str, Any]:
    """Read a record. ValueError: It has another shape, was changed after it was written, or is under another name."""
    record: dict[str, Any] = read_json(path, _SHAPE)
    name, _, date = path.stem.rpartition("-")
    found = datetime.fromisoformat(record["date"]).strftime(_DATE)
    if (record["name"], found) != (name, date) or not _NAME.fullmatch(name):
        expected = f"{name!r} of {date}"
        raise ValueError(f"{path}: got the record {record['name']!r} of {found}, expected {expected}. Fix: remove it")
    return record


def read_benchmarks(folder: Path) -> list[dict[str, Any]]:
    """Return the records of a folder, newest first; each has its file's name as `file`. ValueError: One is damaged."""
    found = [{**read_benchmark(path), "file": path.name} for path in folder.glob("*.json")]
    return sorted(found, key=lambda record: (record["date"], record["file"]), reverse=True)


def source_digest() -> str:
    """Return the SHA-256 of the package's code: the names and contents of its .py and .yaml files."""
    digest, package = hashlib.sha256(), Path(onestep.__file__).parent
    for path in sorted(package.rglob("*")):
        if path.suffix in (".py", ".yaml") and not path.is_relative_to(package / "_workflow"):
            digest.update(f"{path.relative_to(package).as_posix()}\0".encode())
            digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()


def write_commit(path: Path = _OF_COPY) -> None:
    """Write the commit of this clone beside its code, for a copy of the folder on a machine without git."""
    commit, clean = _commit_of_clone()
    write_json(path, {"commit": commit, "clean": clean, "source_sha256": source_digest()})


def _commit() -> tuple[str | None, bool | None]:
    """Return the commit of the code, and whether the tree has no other changes; None and None without git."""
    commit, clean = _commit_of_clone()
    if commit is None and _OF_COPY.is_file():
        noted = read_json(_OF_COPY, {"commit": (str, None), "clean": (bool, None), "source_sha256": str})
        if noted["source_sha256"] == source_digest():
            return noted["commit"], noted["clean"]
    return commit, clean


def _commit_of_clone() -> tuple[str | None, bool | None]:
    try:
        top = _git("rev-parse", "--show-toplevel")
        if Path(top).resolve() != _ROOT.resolve():
            return None, None
        # Records of earlier measurements are no change of the code.
        return _git("rev-parse", "HEAD"), not _git("status", "--porcelain", "--", ".", ":(exclude)docs/records")
    except (OSError, subprocess.SubprocessError):
        return None, None


def _git(*words: str) -> str:
    command = ["git", "-C", str(_ROOT), *words]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.strip()


def machine() -> dict[str, Any]:
    """Return the `processor`, number of `cores` and `memory_gib` of this machine."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(pages / 2**30, 1),
    }


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, flags=re.MULTILINE)
    return found[1].strip() if found else platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def _without_place(word: str) -> str:
    """Return a word of a command; of an absolute path the name alone, because places differ between machines."""
    return f".../{Path(word).name}" if word.startswith("/") else word


def _own_command() -> list[str]:
    program = Path(sys.argv[0])
    return ["onestep" if program.stem in ("onestep", "__main__") else program.name, *sys.argv[1:]]
