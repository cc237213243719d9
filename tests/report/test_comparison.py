"""Two measurements side by side."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from onestep.cli import main

MEASUREMENT = {
    "model": "d2o@640",
    "sampler": "one_step",
    "seeds": "0-31",
    "images": 32,
    "metric": "fid",
    "values": {"frechet": 2.5},
    "features": "inception",
    "feature_weights_sha256": "aa",
    "reference": {"dataset": "cifar10", "images": 50_000, "sha256": "bb"},
}


def compared(folder: Path, **changes: object) -> int:
    for name, content in (("a", MEASUREMENT), ("b", MEASUREMENT | changes)):
        (folder / f"{name}.json").write_text(json.dumps(content))
    return main(["compare", str(folder / "a.json"), str(folder / "b.json")])


def test_the_difference_is_the_second_less_the_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert compared(tmp_path, values={"frechet": 2.25}, seeds="32-63") == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["frechet", "2.5", "2.25", "-0.25"] in rows
    assert rows[2][-2:] == ["seeds", "32-63"] and len(rows) == 4


@pytest.mark.parametrize("fact", ["metric", "features", "feature_weights_sha256", "reference", "images"])
def test_what_was_measured_otherwise_is_not_comparable(fact: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert compared(tmp_path, **{fact: "other"}) == 1
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    own = MEASUREMENT[fact]
    expected = (
        [fact, "-", "other"] if isinstance(own, dict) else [fact, f"{own:,}" if fact == "images" else own, "other"]
    )
    assert expected in rows


def test_files_without_a_common_value_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert compared(tmp_path, values={"precision": 0.5}) == 1
    assert "a.json: frechet" in capsys.readouterr().err


def test_what_is_no_measurement_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "t.json").write_text("[]")
    assert main(["compare", str(tmp_path / "t.json"), str(tmp_path / "t.json")]) == 1
    assert "t.json: got no measurement" in capsys.readouterr().err
