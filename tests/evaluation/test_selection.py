"""Which snapshot is the best, and what is left behind of the choice."""

from __future__ import annotations

import os

import pytest

from onestep.checkpoints.digests import checked
from onestep.evaluation import selection
from onestep.files import read_json, sealed, sha256_of_file, write_bytes, write_json

MODEL = "d2o@best-fd.frechet-one_step-0-9-ema50"


def results_with(folder, values, *, value="frechet"):
    """Write snapshots of another average and their numbers; return the results folder."""
    for images, number in values.items():
        write_bytes(folder / f"runs/d2o/snapshots/{images}-ema50.safetensors", b"average at %d" % images)
        write_bytes(folder / f"runs/d2o/snapshots/{images}.safetensors", b"main at %d" % images)
        path = folder / f"metrics/d2o@{images}-ema50/one_step/0-9.fd.json"
        write_json(path, {"values": {value: number}})
    return folder


def select(folder, *, images, direction="lower"):
    """Choose among snapshots and return the path without its ending."""
    output = folder / "selections" / f"{MODEL}.safetensors"
    choice = {"model": MODEL, "direction": direction, "images": images}
    selection.select(choice=choice, results=folder, output=output)
    return output


@pytest.mark.parametrize(("direction", "chosen"), [("lower", 300), ("higher", 1000)])
def test_the_best_follows_the_direction_and_its_weights_are_kept(tmp_path, direction, chosen):
    results = results_with(tmp_path, {200: 3.0, 300: 1.0, 1000: 4.0})
    output = select(results, images=[1000, 200, 300], direction=direction)
    assert output.read_bytes() == b"average at %d" % chosen
    assert read_json(output.with_name(f"{MODEL}.json")) == sealed(
        {
            "model": MODEL,
            "snapshot": f"d2o@{chosen}-ema50",
            "weights_sha256": sha256_of_file(output),
            "images": chosen,
            "number": "fd.frechet",
            "direction": direction,
            "sampler": "one_step",
            "seeds": "0-9",
            "candidates": {"200": 3.0, "300": 1.0, "1000": 4.0},
        }
    )


@pytest.mark.parametrize("direction", ["lower", "higher"])
def test_of_equal_snapshots_the_earlier_stands(tmp_path, direction):
    assert selection.best([2.0, 2.0, 2.0], direction=direction) == 0
    assert selection.best([5.0, 2.0, 2.0, 5.0], direction=direction) == (1 if direction == "lower" else 0)
    output = select(results_with(tmp_path, {200: 1.0, 1000: 1.0}), images=[1000, 200], direction=direction)
    assert output.read_bytes() == b"average at 200"


def test_a_choice_leaves_the_snapshots_and_their_dates_alone(tmp_path):
    results = results_with(tmp_path, {200: 3.0, 300: 1.0})
    snapshot = results / "runs/d2o/snapshots/300-ema50.safetensors"
    os.utime(snapshot, (1_000, 1_000))
    output = select(results, images=[200, 300])
    assert (snapshot.stat().st_mtime, snapshot.stat().st_nlink) == (1_000, 1)
    assert output.stat().st_mtime > 1_000


def test_a_measurement_without_the_number_is_named(tmp_path):
    results = results_with(tmp_path, {200: 3.0}, value="kernel")
    with pytest.raises(ValueError, match=r"d2o@200-ema50/one_step/0-9.fd.json: got kernel"):
        select(results, images=[200])
    with pytest.raises(FileNotFoundError, match="d2o@300"):
        select(results_with(tmp_path, {200: 3.0}), images=[200, 300])
    assert not list((tmp_path).glob("selections/*"))


def test_a_damaged_snapshot_is_not_selected_and_a_damaged_selection_is_not_read(tmp_path):
    results = results_with(tmp_path, {200: 3.0, 300: 1.0})
    snapshot = results / "runs/d2o/snapshots/300-ema50.safetensors"
    files = {f"snapshots/{snapshot.name}": sha256_of_file(snapshot)}
    write_json(results / "runs/d2o/summary.json", sealed({"files": files}))
    output = select(results, images=[200, 300])
    assert checked(output) == output
    output.write_bytes(b"average at 200")
    with pytest.raises(ValueError, match=MODEL):
        checked(output)
    snapshot.write_bytes(b"Average at 300")
    with pytest.raises(ValueError, match=r"300-ema50\.safetensors.*summary\.json"):
        select(results, images=[200, 300])


@pytest.mark.parametrize("content", ["{}", "null", '{"values": 3}', '{"values": {"frechet": NaN}}', "[" * 50_000])
def test_a_metric_of_another_shape_is_named(tmp_path, content):
    results = results_with(tmp_path, {200: 3.0, 300: 1.0})
    path = results / "metrics/d2o@300-ema50/one_step/0-9.fd.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"0-9\.fd\.json"):
        select(results, images=[200, 300])


@pytest.mark.parametrize(
    ("fact", "one", "other"),
    [
        ("precision", "float32", "bfloat16"),
        ("feature_weights_sha256", "a" * 64, "b" * 64),
        ("reference", {"sha256": "a" * 64}, {"sha256": "b" * 64}),
        ("images", 2000, 1000),
    ],
)
def test_candidates_that_were_measured_otherwise_are_not_compared(tmp_path, fact, one, other):
    results = results_with(tmp_path, {200: 3.0, 300: 1.0})
    for images, content in ((200, one), (300, other)):
        write_json(
            results / f"metrics/d2o@{images}-ema50/one_step/0-9.fd.json",
            {"values": {"frechet": 1.0}, fact: content},
        )
    with pytest.raises(ValueError, match=rf"d2o@300-ema50.*{fact}"):
        select(results, images=[200, 300])
