"""A regression on pairs at full size, on a CPU, with each kind of initial weights: two steps of two images.

Deselected unless asked for (`make test-full-size`).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from onestep.archive import write_arrays
from onestep.networks import published_architecture
from recipes import recipe

_WORKER = Path(__file__).with_name("full_size_worker.py")
_TEACHERS = {
    "cifar10_uncond_d2o_f": "edm-cifar10-32x32-uncond-ve",
    "cifar10_cond_d2o_f": "edm-cifar10-32x32-cond-ve",
    "imagenet64_d2o_f": "edm-imagenet-64x64-cond-adm",
}
_FIRST_AND_LAST = {
    "imagenet64_d2o_f": ["model.enc.64x64_conv.*", "model.out_conv.*", "model.map_layer*"],
    "cifar10_uncond_d2o_f": ["model.enc.32x32_conv.*", "model.dec.32x32_aux_conv.*", "model.map_layer*"],
    "cifar10_cond_d2o_f": ["model.enc.32x32_conv.*", "model.dec.32x32_aux_conv.*", "model.map_layer*"],
}


def work(*arguments):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, _WORKER, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.full_size
@pytest.mark.parametrize("run", _TEACHERS)
@pytest.mark.parametrize("init", ["none", "redraw", "shuffle"])
def test_two_steps_are_finite_and_move_the_generator_alone(run, init, tmp_path, capsys):
    config = {**published_architecture(_TEACHERS[run])}
    work("teacher", tmp_path, json.dumps(config))
    document = recipe(run) | {"batch": 2, "images": 4, "snapshots": [0, 4], "freeze": []}
    document |= {"discriminator": None, "preconditioning": "edm", "networks": {}}
    document["optimizers"] = {"generator": document["optimizers"]["generator"]}
    document["objective"] = {"name": "paired_regression", "distance": {"name": "l2"}}
    document["pairs"] = {"teacher": "edm", "sampler": "heun", "seeds": ["7-9"]}
    options = {"none": {"from": "none"}, "redraw": {"redraw": _FIRST_AND_LAST[run]}, "shuffle": {"shuffle": True}}
    document["init"] = options[init]
    size, classes = config["img_resolution"], config.get("label_dim", 0)
    labels = np.array([0, 1, classes - 1]) if classes else np.full(3, -1)
    pixels = np.random.RandomState(3).randint(256, size=(3, size, size, 3), dtype=np.uint8)
    about = {"subject": {"model": "edm", "sampler": "heun", "seeds": "7-9"}, "sampler": {"name": "heun", "steps": 18}}
    write_arrays(tmp_path / "7-9.npz", {"pixels": pixels, "labels": labels, "seeds": np.arange(7, 10)}, about=about)
    (tmp_path / "run.json").write_text(json.dumps({key: each for key, each in document.items() if each is not None}))
    work("train", tmp_path, tmp_path, tmp_path / "run.json", tmp_path / "report.json")
    report = json.loads((tmp_path / "report.json").read_text())
    with capsys.disabled():
        print(f"\n{run}, {init}: {report['seconds']:.0f} s for 2 steps, peak memory {report['peak_mib']:,} MiB")
    assert report["finite"] and not report["held_changed"]
    assert {name.split(".")[0] for name in report["moved"]} == {"generator"}
    assert sum(share > 0 for share in report["moved"].values()) > 0.9 * len(report["moved"])
    assert (tmp_path / "state/snapshots/0.safetensors").exists()
    shutil.rmtree(tmp_path)
