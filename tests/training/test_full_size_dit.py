"""A step of SiT-XL/2 on latents [4, 32, 32] at full size, on a CPU: minutes, and 12 GiB of memory."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.full_size
_WORKER = Path(__file__).with_name("full_size_dit_worker.py")


def test_a_step_is_finite_and_moves_what_f2_trains(tmp_path, capsys):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(_WORKER), str(tmp_path / "report.json")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    report = json.loads((tmp_path / "report.json").read_text())
    with capsys.disabled():
        print(f"\nSiT-XL/2, one image: {report['seconds']:.0f} s, peak memory {report['peak_mib']:,} MiB")
    assert set(report["losses"]) == {"generator", "discriminator", "r1"}
    assert all(map(math.isfinite, report["losses"].values())) and report["finite"]
    assert not report["frozen_changed"] and min(report["moved"].values()) > 0.9
    # Of the published file, 675,129,632 numbers, F2 and the positions are held.
    assert report["parameters"] + report["positions"] == 675_129_632
    assert report["frozen"] + report["positions"] == 446_492_160
