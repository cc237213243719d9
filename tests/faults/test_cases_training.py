"""A run, its teacher and its dataset must fit, which is said before the first step."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forks import Ended, Forks
from pictures import edm_zip, is_refused

from tiny import tiny_config, write_config

_TEACHER = {"name": "song_unet", "img_resolution": 16, "img_channels": 1, "label_dim": 10, "model_channels": 16}
_TEACHER |= {"channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [], "preconditioning": "edm"}
_BACKBONE = {"name": "convnet", "resolution": 16, "channels": 1, "classes": 10, "width": 16}


@pytest.fixture
def train(forks: Forks, tmp_path: Path) -> Callable[..., Ended]:
    """Train a tiny D2O run on 16x16 pictures in grey: `labels`, `teacher` and `run` say what differs."""
    from onestep.checkpoints.snapshot import write_snapshot
    from onestep.classifiers import build_classifier
    from onestep.networks import build_denoiser

    def run(*, labels: Any, teacher: dict[str, Any] | None = None, grey: bool = True, **run: Any) -> Ended:
        config = tiny_config()
        for each in config["runs"].values():
            each |= {"batch": 16, "images": 32, "snapshot_every": 32}
        config["runs"]["digits_d2o"] |= run
        write_config(tmp_path, config)
        resolved = forks.onestep(
            "resolve", "--config", "config.yaml", "--run", "digits_d2o", "--output", "run.yaml", folder=tmp_path
        )
        assert resolved.code == 0, resolved
        network = _TEACHER | (teacher or {})
        write_snapshot(tmp_path / "t.safetensors", build_denoiser(network).state_dict(), network)
        write_snapshot(tmp_path / "b.safetensors", build_classifier(_BACKBONE).state_dict(), _BACKBONE)
        listed = None if labels is None else [[f"00000/img{i:08d}.png", labels(i)] for i in range(32)]
        edm_zip(tmp_path / "d.zip", labels=listed, count=32, grey=grey)
        words = ["train", "--run", "run.yaml", "--data", "d.zip", "--teacher", "t.safetensors", "--state", "state"]
        words += ["--backbone", "digits=b.safetensors", "--output", "o"]
        return forks.onestep(*words, folder=tmp_path, limit=120)

    return run


def test_what_fits_is_trained(train, tmp_path: Path) -> None:
    assert train(labels=lambda i: i % 10, conditional=True).code == 0
    assert json.loads((tmp_path / "o/digits_d2o/summary.json").read_text())["images_seen"] == 32


@pytest.mark.parametrize("labels", [None, lambda i: 0], ids=["none", "one class"])
def test_a_conditional_run_on_other_labels_names_the_dataset(train, labels) -> None:
    assert is_refused(train(labels=labels, conditional=True), "d.zip")


@pytest.mark.parametrize("count", [2, 9, 11, 20])
def test_another_number_of_classes_names_dataset_and_teacher(train, tmp_path: Path, count: int) -> None:
    ended = train(labels=lambda i: i % count, conditional=True)
    assert is_refused(ended, "d.zip", "t.safetensors") and not list(tmp_path.rglob("log.jsonl"))


@pytest.mark.parametrize(
    "teacher",
    [{"img_resolution": 32}, {"img_channels": 3}, {"label_dim": 0}, {"label_dim": 7}],
    ids=["resolution", "channels", "unconditional", "classes"],
)
def test_another_teacher_is_named(train, tmp_path: Path, teacher: dict[str, Any]) -> None:
    ended = train(labels=lambda i: i % 10, teacher=teacher, conditional=True)
    assert is_refused(ended, "t.safetensors") and not list(tmp_path.rglob("log.jsonl"))


def test_pictures_in_colour_for_a_teacher_in_grey_are_named(train, tmp_path: Path) -> None:
    ended = train(labels=lambda i: i % 10, grey=False, conditional=True)
    assert is_refused(ended, "d.zip") and not list(tmp_path.rglob("log.jsonl"))
