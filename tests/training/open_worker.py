"""One rank of a training from a run.yaml: python open_worker.py RUN_YAML FOLDER.

FOLDER is that of `conftest.Bench`. The environment has KILL_AT, the step that kills this process (from 1; 0 for none),
and STATE and OUTPUT, where the run works and publishes; PAIRS has the files of its pairs, if it has some.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
from pathlib import Path

import torch
import yaml

from onestep.training import assembly, loop
from onestep.training.assignment import Assignment, Inputs
from onestep.training.run import carry_out

_numbers, _take_step = itertools.count(1), loop.take_step


def take_step(*arguments, **named):
    """Take a step, or die."""
    if next(_numbers) == int(os.environ["KILL_AT"]):
        os.kill(os.getpid(), signal.SIGKILL)
    return _take_step(*arguments, **named)


def main(run, folder):
    """Train the run."""
    torch.set_num_threads(1)
    loop.take_step, assembly.RECORDS = take_step, 1000
    backbones = {"digits": folder / "backbone.safetensors"}
    pairs = tuple(map(Path, filter(None, os.environ.get("PAIRS", "").split(":"))))
    teacher = folder / "teacher.safetensors"
    codec = folder / "codec.safetensors" if yaml.safe_load(run.read_text()).get("codec") else None
    files = {"data": folder / "digits.zip", "teacher": teacher, "backbones": backbones, "codec": codec}
    inputs = Inputs(run=run, **files, pairs=pairs)
    state = Path(os.environ["STATE"])
    assignment = Assignment(inputs=inputs, state=state, code_in_spec=False, state_seconds=0.0)
    name = yaml.safe_load(run.read_text())["run"]
    assert carry_out(assignment, folder=state / name / "spec", code="", output=Path(os.environ["OUTPUT"]))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
