"""Steps of SiT-XL/2 on latents [4, 32, 32] at full size, on a CPU: minutes, and 12 GiB of memory."""

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


def _taken(tmp_path, *arguments):
    """Return the report of a step, which is finite, moves what F2 trains, and leaves the rest."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(_WORKER), str(tmp_path / "report.json"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    report = json.loads((tmp_path / "report.json").read_text())
    assert set(report["losses"]) == {"generator", "discriminator", "r1"}
    assert all(map(math.isfinite, report["losses"].values())) and report["finite"]
    assert not report["frozen_changed"] and min(report["moved"].values()) > 0.9
    return report


def _printed(report, of, capsys):
    with capsys.disabled():
        print(f"\n{of}: {report['seconds']:.0f} s, peak memory {report['peak_mib']:,} MiB")


def test_a_step_with_heads_on_its_tokens(tmp_path, capsys):
    report = _taken(tmp_path)
    _printed(report, "SiT-XL/2, one image", capsys)
    # Of the published file, 675,129,632 numbers, F2 and the positions are held.
    assert report["parameters"] + report["positions"] == 675_129_632
    assert report["frozen"] + report["positions"] == 446_492_160


def test_a_step_of_the_recipe_without_classes(tmp_path, capsys):
    """COCO at 256 pixels: latents are decoded for a discriminator of DeiT and EfficientNet."""
    report = _taken(tmp_path, "coco256_sit_d2o_f")
    _printed(report, "SiT-XL/2 for no class, decoded at 256 pixels, two images", capsys)
    # The table of 1,001 classes is not among them.
    assert report["parameters"] + report["positions"] == 675_129_632 - 1_001 * 1_152
    assert report["frozen"] + report["positions"] == 446_492_160
