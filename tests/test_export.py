"""A generator is passed on as one file that builds itself, with a card whose code runs as it stands."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest
import torch
import yaml

from onestep.checkpoints.snapshot import write_snapshot
from onestep.cli import main
from onestep.networks import build_denoiser

NETWORK = {
    "name": "song_unet",
    "model_channels": 16,
    "channel_mult": [1],
    "num_blocks": 1,
    "attn_resolutions": [],
    "img_resolution": 16,
    "img_channels": 1,
    "label_dim": 0,
    "preconditioning": "d2o",
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return the folder of a finished run."""
    torch.manual_seed(0)
    folder = tmp_path / "results" / "runs" / "d2o"
    (folder / "snapshots").mkdir(parents=True)
    write_snapshot(folder / "snapshots" / "640.safetensors", build_denoiser(NETWORK).state_dict(), NETWORK)
    objective = {"name": "d2o", "sigma": 80.0}
    document = {"run": "d2o", "dataset": "digits", "teacher": "edm", "objective": objective}
    (folder / "run.yaml").write_text(yaml.safe_dump(document))
    (folder / "summary.json").write_text(json.dumps({"parameters": 12_345, "frozen_share": 0.844}))
    return folder


def table_of(run: Path, *snapshots: str) -> Path:
    path = run.parent.parent / "table.json"
    rows = [
        {"run": "d2o", "snapshot": name, "sampler": "one_step", "nfe": 1, "metrics": {"fd": 1.25, "is": None}}
        for name in snapshots
    ]
    rows = [row | {"show": "best"} for row in rows]
    path.write_text(json.dumps(rows))
    return path


def exported(run: Path, *options: str) -> int:
    weights = run / "snapshots" / "640.safetensors"
    return main(["export", "--weights", str(weights), "--run", str(run), "--output", str(run / "out"), *options])


def test_the_cards_own_code_makes_images(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert exported(run, "--table", str(table_of(run, "d2o@640"))) == 0
    card = (run / "out" / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", card, flags=re.S).group(1)
    monkeypatch.chdir(run / "out")
    names: dict[str, object] = {}
    exec(code, names)
    assert names["samples"].pixels.shape == (16, 16, 16, 1)
    assert len(set(map(bytes, names["samples"].pixels.numpy()))) == 16


def test_the_card_says_what_it_is_and_what_was_measured(run: Path) -> None:
    exported(run, "--table", str(table_of(run, "d2o@320", "d2o@640")), "--licence", "apache-2.0")
    card = (run / "out" / "README.md").read_text()
    digest = hashlib.sha256((run / "out" / "generator.safetensors").read_bytes()).hexdigest()
    assert digest in card
    assert "license: apache-2.0" in card
    assert "12,345 parameters, 84.4 % of them frozen, trained on 640 images of digits" in card
    assert "| d2o@640 | one_step | 1 | 1.25 |" in card
    assert "best of its blocks of seeds" in card
    assert "d2o@320" not in card


def test_a_teachers_terms_go_with_it_unless_said_otherwise(run: Path) -> None:
    exported(run)
    assert "license: cc-by-nc-sa-4.0" in (run / "out" / "README.md").read_text()


def test_numbers_of_another_snapshot_are_not_claimed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exported(run, "--table", str(table_of(run, "d2o@320"))) == 1
    assert "table.json: got rows of d2o@320, expected one of d2o@640" in capsys.readouterr().err
    assert not (run / "out").exists()


def test_what_needs_many_steps_is_not_exported(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = yaml.safe_load((run / "run.yaml").read_text())
    (run / "run.yaml").write_text(yaml.safe_dump(document | {"objective": {"name": "edm"}}))
    assert exported(run) == 1
    assert "got objective edm" in capsys.readouterr().err
