"""Runs on a part of the dataset, with snapshots at stated counts and parameters frozen at random."""

from __future__ import annotations

import json

import pytest
import torch
import yaml

from onestep.config.run import run_of
from onestep.data._subset import subset_of
from onestep.data.image_zip import ImageZip
from onestep.distributed import Ranks
from onestep.training.log import Window, record_of
from onestep.training.loop import take_step
from onestep.training.run import assemble
from onestep.training.step import PhaseReport

ALONE = Ranks(rank=0, world=1, device=torch.device("cpu"))


def assembled(bench, run, **changes):
    document = yaml.safe_load(bench.document(run, **changes).read_text())
    return assemble(run_of(document), files=bench.files(document), ranks=ALONE)


def test_a_run_trains_on_the_images_and_classes_of_its_subset(bench):
    archive = ImageZip(source=bench.folder / "digits.zip")
    pixels, labels = archive.read_all()
    chosen = subset_of(labels, images=50, seed=7)
    training = assembled(bench, "digits_backbone", subset={"images": 50, "seed": 7})
    assert torch.equal(training.pixels, torch.from_numpy(pixels[chosen]))
    assert torch.equal(training.conditions[torch.arange(50)].argmax(1), torch.from_numpy(labels[chosen]))
    assert set(training.order.take(100).tolist()) == set(range(50))
    with pytest.raises(ValueError, match="subset.images"):
        assembled(bench, "digits_d2o", subset={"images": len(labels) + 1, "seed": 7})


def test_as_many_parameters_as_those_of_a_level_are_frozen_and_stay(bench):
    plain = assembled(bench, "digits_d2o", freeze=["conv", "proj"])
    training = assembled(bench, "digits_d2o", freeze=["conv", "proj"], freeze_seed=0, subset={"images": 64, "seed": 0})
    before = {name: each.clone() for name, each in training.networks["generator"].named_parameters()}
    trained = {id(each) for each in training.optimizers["generator"].parameters}
    take_step(training, images_seen=0, ranks=ALONE)
    sizes = [sum(each.numel() for each in one.optimizers["generator"].parameters) for one in (plain, training)]
    assert sizes[0] <= sizes[1] <= 1.02 * sizes[0]
    for name, each in training.networks["generator"].named_parameters():
        assert torch.equal(each, before[name]) is (id(each) not in trained), name


def test_snapshots_are_taken_at_stated_counts_and_a_run_on_a_subset_ends(bench, tmp_path):
    document = bench.document("digits_d2o", images=192, snapshots=[32, 100, 192], subset={"images": 40, "seed": 0})
    bench.run(bench.arguments(document, state=tmp_path / "state", output=tmp_path / "runs"))
    files = {path.name for path in (tmp_path / "runs" / "digits_d2o" / "snapshots").iterdir()}
    assert files == {f"{count}.safetensors" for count in (32, 100, 192)}
    records = (tmp_path / "runs" / "digits_d2o" / "log.jsonl").read_text().splitlines()
    assert all(json.loads(line)["non_finite"] == 0 and "non_finite_share" not in line for line in records)


def test_the_log_has_the_share_of_gradient_entries_that_are_not_finite(bench):
    training = assembled(bench, "digits_d2o", non_finite_limit=0.5)
    window = Window()
    report = PhaseReport(name="r1", loss=torch.tensor(1.0), observed={}, replaced=torch.tensor(5), entries=20)
    window.add([report])
    record = record_of(training, images_seen=64, window=window, rate=1.0, seconds=1.0, ranks=ALONE)
    assert (record["non_finite"], record["non_finite_share"]) == (5, 0.25)
