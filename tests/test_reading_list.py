"""One training step can be read in few files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("objective", ["d2o", "edm"])
def test_a_step_is_read_in_at_most_12_files_and_1500_lines(objective):
    command = [sys.executable, "-m", "tests.tools.reading_list", objective]
    result = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"objectives/{objective}.py" in result.stdout
