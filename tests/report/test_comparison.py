"""Two measurements, runs or results folders side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml
from PIL import Image

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


def run(folder: Path, name: str, *, lr: float, images: int, frechet: Mapping[int, float], **changes: object) -> Path:
    """Write a run with a log and numbers of one block of seeds for each snapshot."""
    path = folder / "results" / "runs" / name
    path.mkdir(parents=True)
    document = {"run": name, "objective": {"name": "d2o"}, "dataset": "cifar10", "lr": lr, "images": images}
    (path / "run.yaml").write_text(yaml.safe_dump(document))
    records = [{"images_seen": seen, "losses": {"generator": lr * seen}} for seen in range(10, images + 1, 10)]
    (path / "log.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    for seen, value in frechet.items():
        measured = MEASUREMENT | {"model": f"{name}@{seen}", "values": {"frechet": value}} | changes
        file = folder / "results" / "metrics" / f"{name}@{seen}" / "one_step" / "0-31.fid.json"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(measured))
    return path


def rows_of(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_runs_differ_in_config_losses_and_numbers(tmp_path, monkeypatch, capsys):
    run(tmp_path, "slow", lr=1.0, images=200, frechet={100: 9.0, 200: 8.0})
    run(tmp_path, "fast", lr=2.0, images=300, frechet={100: 7.0, 200: 6.5, 300: 5.0})
    monkeypatch.chdir(tmp_path)
    assert main(["compare", "slow", "results/runs/fast", "--output", "c.svg"]) == 0
    out = capsys.readouterr().out
    rows = rows_of(out)
    assert ["lr", "1", "2", "+1"] in rows and ["images", "200", "300", "+100"] in rows
    assert ["last", "generator", "loss", "195", "580", "+385"] in rows  # means over the last tenths
    assert ["measured", "at", "200", "images", "slow", "fast", "difference"] in rows  # the newest that both have
    assert ["one_step", "fid.frechet", "8", "6.5", "-1.5"] in rows
    assert "missing: results/runs/slow/summary.json" in out
    root = ElementTree.parse("c.svg").getroot()
    assert root.tag.endswith("svg") and len(root.findall(".//{*}g[@id='axes_1']")) == 1
    assert main(["compare", "slow", "fast", "--output", "c.png"]) == 0
    with Image.open("c.png") as picture:
        assert picture.format == "PNG" and min(picture.size) > 300


def test_numbers_of_runs_against_other_references_are_not_comparable(tmp_path, monkeypatch, capsys):
    run(tmp_path, "one", lr=1.0, images=20, frechet={20: 9.0})
    run(tmp_path, "two", lr=1.0, images=20, frechet={20: 7.0}, reference={"dataset": "ffhq"})
    monkeypatch.chdir(tmp_path)
    assert main(["compare", "one", "two"]) == 1
    assert "not comparable: one_step fid.frechet differs in reference" in capsys.readouterr().out


def test_results_folders_are_compared_where_both_have_something(tmp_path, capsys):
    for side, value in (("old", 9.0), ("new", 7.0)):
        run(tmp_path / side, "d2o", lr=1.0 if side == "old" else 3.0, images=20, frechet={10: 11.0, 20: value})
    run(tmp_path / "new", "extra", lr=1.0, images=20, frechet={})
    words = ["compare", str(tmp_path / "old"), str(tmp_path / "new" / "results")]
    assert main([*words, "--output", str(tmp_path / "c.png")]) == 0
    out = capsys.readouterr().out
    assert ["d2o@20", "one_step", "fid.frechet", "9", "7", "-2"] in rows_of(out)
    assert ["lr", "1", "3", "+2"] in rows_of(out) and "only in new/results: extra" in out
    assert (tmp_path / "c.png").exists()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["a.json", "results/runs/d2o"], "expected the same of both"),
        (["d2o", "absent"], "absent"),
        (["a.json", "a.json", "--output", "c.svg"], "c.svg: got no curves"),
        (["a.json", "a.json", "--output", "c.pdf"], ".svg or .png"),
    ],
)
def test_what_cannot_be_compared_is_one_line(tmp_path, monkeypatch, capsys, words, named):
    run(tmp_path, "d2o", lr=1.0, images=20, frechet={})
    (tmp_path / "a.json").write_text(json.dumps(MEASUREMENT))
    monkeypatch.chdir(tmp_path)
    assert main(["compare", *words]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert named in line and not list(tmp_path.glob("c.*"))
