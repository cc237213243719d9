"""The command that made the results: kept in the environment of the workflow's jobs, and shown on the page."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import MutableMapping, Sequence
from pathlib import Path

_COMMAND, _FOLDER, _PROFILE = "ONESTEP_COMMAND", "ONESTEP_COMMAND_FOLDER", "SNAKEMAKE_PROFILE"


def keep(arguments: Sequence[str], *, folder: Path | str, environment: MutableMapping[str, str] = os.environ) -> None:
    """Keep a command, typed in `folder`, for the children of this process, unless a parent has kept its own."""
    if _COMMAND not in environment:
        environment[_FOLDER] = str(Path(folder).absolute())
        environment[_COMMAND] = shlex.join([Path(arguments[0]).name, *arguments[1:]])


def lines(config: Path, *, environment: MutableMapping[str, str] = os.environ) -> tuple[str, ...]:
    """Return the kept command as lines of a shell, from the folder of the results on; else that of this process.

    Absolute paths are relative to the folder in which the command was typed, so that the lines hold on a copy.
    """
    here = Path.cwd()
    if _COMMAND not in environment:
        words, start = [Path(sys.argv[0]).name, *sys.argv[1:]], here
    else:
        words, start = shlex.split(environment[_COMMAND]), Path(environment.get(_FOLDER, here))
    profile = environment.get(_PROFILE)
    shown = shlex.join(_relative(word, start) for word in words)
    if profile and words[0] == "snakemake" and "--profile" not in words:
        shown = f"{_PROFILE}={shlex.quote(_relative(profile, start))} {shown}"
    folder = os.path.relpath(start.resolve(), here.resolve())
    head = () if folder == "." else (f"cd {shlex.quote(folder)}  # from the folder of {config.name}",)
    return (*head, shown)


def _relative(word: str, start: Path) -> str:
    name, equals, value = word.rpartition("=")
    path = Path(value)
    return f"{name}{equals}{os.path.relpath(path, start)}" if path.is_absolute() and path.exists() else word
