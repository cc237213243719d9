"""`onestep ARGUMENTS` with few records, in a rank that gets the signal STOP_BY in the midst of its step STOP_AT."""

from __future__ import annotations

import itertools
import os
import signal
import sys

from onestep.cli import main
from onestep.training import assembly, loop

assembly.RECORDS = 5
_numbers, _take_step = itertools.count(1), loop.take_step


def step(*arguments, **named):
    """Take a step as ever, but for the signal."""
    if next(_numbers) == int(os.environ["STOP_AT"]):
        os.kill(os.getpid(), getattr(signal, os.environ["STOP_BY"]))
    return _take_step(*arguments, **named)


loop.take_step = step
sys.exit(main(sys.argv[1:]))
