"""A training that is watched trains the same; what is seen of it is on disk while it goes on."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from onestep.records import newest_watched, read_measurement
from onestep.training.assignment import Assignment
from onestep.training.run import carry_out

RUN = "digits_d2o"


def order(bench):
    """Return an order of a number, with the backbone as feature network and no reference."""
    features = {"name": "classifier"}
    block = {"name": "inception_score", "splits": 2}
    number = {"metric": "is", "images": 64, "block": block, "features": "digits", "features_block": features}
    return {"numbers": [number | {"weights": str(bench.folder / "backbone.safetensors")}]}


def command(bench, folder, asked):
    """Return the command line of a tiny run of two snapshots, with an order."""
    document = bench.document(RUN, images=320, snapshots=[160, 320], dropout=0.1)
    arguments = bench.arguments(document, state=folder / "state", output=folder / "runs")
    return [*arguments, "--state-seconds", "0", "--watch", json.dumps(asked)]


def records(folder):
    return [json.loads(line) for line in (folder / f"runs/{RUN}/log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def watched(bench, tmp_path_factory):
    """A run that was watched, stopped after its first snapshot, and resumed."""
    folder = tmp_path_factory.mktemp("watched")
    arguments = command(bench, folder, order(bench))
    process = bench.start(arguments)
    number = folder / f"runs/{RUN}/watch/160.is.json"
    while not number.exists() and process.poll() is None:
        time.sleep(0.01)
    assert number.with_name("160.png").exists() and process.poll() is None, "not while it trains"
    process.kill()
    process.communicate()
    bench.run(arguments)
    return folder


def test_losses_and_snapshots_are_those_of_an_unwatched_run(bench, watched, tmp_path):
    document = bench.document(RUN, images=320, snapshots=[160, 320], dropout=0.1)
    files = replace(bench.files({"teacher": "digits", "discriminator": RUN}), run=document)
    assignment = Assignment(inputs=files, state=tmp_path / "state", code_in_spec=False, state_seconds=300.0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the watched one
    carry_out(assignment, folder=assignment.folder(""), code="", output=tmp_path / "runs")
    torch.set_num_threads(threads)
    assert not (tmp_path / f"runs/{RUN}/watch").exists()
    for count in (160, 320):
        name = f"runs/{RUN}/snapshots/{count}.safetensors"
        assert (tmp_path / name).read_bytes() == (watched / name).read_bytes()
    seen, unseen = records(watched), records(tmp_path)
    assert [each["losses"] for each in seen] == [each["losses"] for each in unseen]


def test_a_record_has_its_time_in_utc(watched):
    times = [datetime.fromisoformat(record["time"]) for record in records(watched)]
    assert times == sorted(times) and times[0].utcoffset().total_seconds() == 0
    assert 0 <= (datetime.now(UTC) - times[-1]).total_seconds() < 600
    assert all(record["processes"] == 1 and record["seconds"] >= 0 for record in records(watched))


def test_tensorboard_reads_each_step_once_after_a_resume(watched):
    events = EventAccumulator(str(watched / f"runs/{RUN}/tensorboard"), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    assert len(list((watched / f"runs/{RUN}/tensorboard").iterdir())) == 2
    logged = records(watched)
    for phase in ("generator", "discriminator"):
        expected = {record["images_seen"]: record["losses"][phase] for record in logged}
        found = [(each.step, each.value) for each in events.Scalars(f"losses/{phase}")]
        assert [step for step, _ in found] == list(expected)
        assert [value for _, value in found] == pytest.approx(list(expected.values()), rel=1e-6)
    assert [each.step for each in events.Images("samples")] == [160, 320]
    assert {each.step for each in events.Scalars("metrics/is.inception_score")} == {160, 320}


def test_a_grid_has_its_identity_and_images_that_differ(watched):
    with Image.open(watched / f"runs/{RUN}/watch/320.png") as picture:
        about, pixels = json.loads(picture.text["onestep"]), np.asarray(picture)
    assert (about["run"], about["images_seen"], about["seeds"]) == (RUN, 320, "0-63")
    assert about["sampler"] == {"name": "one_step", "sigma": 80.0}
    assert pixels.std() > 10 and min(pixels.shape) >= 128
    done = json.loads((watched / f"runs/{RUN}/summary.json").read_text())
    assert about["weights_sha256"] == done["files"]["snapshots/320.safetensors"]


def test_a_number_has_its_identity_and_is_found_as_the_newest(watched):
    folder = watched / f"runs/{RUN}"
    (spec,) = (path.name for path in (watched / f"state/{RUN}").iterdir())
    number = read_measurement(folder / "watch/320.is.json")
    assert (number["model"], number["sampler"], number["seeds"]) == (f"{RUN}@320", "one_step", "0-63")
    assert number["spec"] == spec and number["images"] == 64
    newest = newest_watched(folder, spec=spec)
    assert newest.grid == (320, folder / "watch/320.png")
    assert newest.number == ("is", "inception_score", number["values"]["inception_score"], 320)
    assert newest_watched(folder, spec="other").number is None


def test_a_sink_that_fails_is_one_line(bench, tmp_path):
    asked = order(bench) | {"wandb": "no-such-package"}
    asked["numbers"][0]["weights"] = str(tmp_path / "absent.safetensors")
    said = bench.run(command(bench, tmp_path, asked)).splitlines()
    for name in ("Weights & Biases", "watch.numbers.is"):
        assert sum(name in line and "continues" in line for line in said) == 1, said
    assert (tmp_path / f"runs/{RUN}/watch/320.png").exists()


@pytest.mark.long
def test_a_run_that_grows_shows_its_grids_curves_and_numbers_and_another_science_takes_them_along(bench, tmp_path):
    def train(images, **changes):
        document = bench.document("digits_edm", images=images, snapshots=[*range(64, images + 1, 64)], **changes)
        return bench.run(bench.arguments(document, state=tmp_path / "state", output=tmp_path / "runs"))

    shown = tmp_path / "runs/digits_edm"
    train(64)
    first = (shown / "watch/64.png").stat().st_ino
    train(128)
    grids = {path.name for path in (shown / "watch").iterdir()}
    assert grids == {"64.png", "128.png"} and (shown / "watch/64.png").stat().st_ino == first
    assert len(list((shown / "tensorboard").iterdir())) == 2
    train(64, seed=7)
    (earlier,) = (shown / "earlier").iterdir()
    assert {path.name for path in (earlier / "watch").iterdir()} == grids
    assert {path.name for path in (shown / "watch").iterdir()} == {"64.png"}
    assert len(list((shown / "tensorboard").iterdir())) == 1


def test_a_training_that_fails_leaves_its_reason_until_it_starts_again(bench, tmp_path):
    document = bench.document("digits_edm", images=128, snapshots=[128])
    arguments = bench.arguments(document, state=tmp_path / "state", output=tmp_path / "runs")
    bench.run(arguments)
    (work,) = (tmp_path / "state/digits_edm").iterdir()
    shorter = bench.document("digits_edm", images=64, snapshots=[64])
    process = bench.start(bench.arguments(shorter, state=tmp_path / "state", output=tmp_path / "runs"))
    process.communicate()
    assert process.returncode == 1 and "got 64" in json.loads((work / "failed.json").read_text())["reason"]
    bench.run(arguments)
    assert not (work / "failed.json").exists()
