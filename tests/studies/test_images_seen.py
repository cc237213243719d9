"""FD against images seen: the curves, the control, and each verdict of the rule."""

from __future__ import annotations

import json

import numpy as np
import pytest

from onestep.cli import main
from onestep.files import read_json, write_json
from onestep.studies import Measurements, SnapshotMeasurements
from onestep.studies._run import study as run_study
from onestep.studies.images_seen import ImagesSeen

SEEDS = ("0-9", "10-19", "20-29")
OPTIONS = {"sampler": "one_step", "metric": "fd", "value": "frechet", "seeds": SEEDS}
BLOCK = {"name": "images_seen", "runs": ["d2o"], **OPTIONS}


def study(runs=("d2o",), **options):
    return ImagesSeen(runs=runs, **OPTIONS, **options)


def measured(folder, model, values, *, better="lower"):
    """Write one measurement per seed block and return the files."""
    paths = []
    for index, (seeds, value) in enumerate(zip(SEEDS, values, strict=False)):
        record = {"model": model, "seeds": seeds, "values": {"frechet": value}, "better": {"frechet": better}}
        paths.append(folder / f"{model.replace('@', '-')}.{index}.json")
        write_json(paths[-1], record)
    return paths


def snapshots(folder, run, curve, **options):
    return [path for images, values in curve.items() for path in measured(folder, f"{run}@{images}", values, **options)]


def test_it_observes_all_snapshots_and_the_control():
    found = study(control="edm", control_sampler="heun").observes()
    assert found["run.d2o"] == SnapshotMeasurements(run="d2o", sampler="one_step", seeds=SEEDS, metric="fd")
    assert found["control"] == Measurements(model="edm", sampler="heun", seeds=SEEDS, metric="fd")
    assert set(study(runs=("a", "b")).observes()) == {"run.a", "run.b"}


CURVE = {1000: (5.0, 5.2, 4.8), 64: (9.0, 9.2, 8.8)}


def test_curves_are_sorted_by_images_seen_and_seed_block(tmp_path):
    files = {"run.d2o": snapshots(tmp_path, "d2o", CURVE)[::-1], "control": measured(tmp_path, "edm", (7.0, 7.1, 6.9))}
    found = study(control="edm").conclude(files)
    assert found.arrays["d2o.images_seen"].tolist() == [64, 1000]
    np.testing.assert_array_equal(found.arrays["d2o.frechet"], [CURVE[64], CURVE[1000]])
    assert found.numbers["d2o.frechet"] == pytest.approx(5) and found.control["d2o.frechet"] == pytest.approx(7)
    assert found.numbers["d2o.gain"] == pytest.approx(2 / (0.2**2 + 0.1**2) ** 0.5)


VERDICTS = {
    "confirmed": ((7.0, 7.2, 6.8), "lower"),
    "contradicted": ((3.0, 3.2, 2.8), "lower"),
    "not confirmed": ((5.1, 5.3, 4.9), "lower"),
    "undecided": ((7.0,), "lower"),
}


@pytest.mark.parametrize(("verdict", "control", "better"), [(name, *case) for name, case in VERDICTS.items()])
def test_each_verdict(tmp_path, verdict, control, better):
    blocks = SEEDS[: len(control)]
    values = {1000: CURVE[1000][: len(control)]}
    files = {"run.d2o": snapshots(tmp_path, "d2o", values), "control": measured(tmp_path, "edm", control)}
    chosen = ImagesSeen(runs=("d2o",), sampler="s", metric="fd", value="frechet", seeds=blocks, control="edm")
    assert chosen.conclude(files).verdict == verdict


def test_the_direction_is_that_of_the_metric(tmp_path):
    lower = {"run.d2o": snapshots(tmp_path, "d2o", CURVE)}
    assert study().conclude(lower).verdict == "confirmed"
    higher = {"run.d2o": snapshots(tmp_path, "d2o", CURVE, better="higher")}
    assert study().conclude(higher).verdict == "contradicted"


def test_a_run_with_one_snapshot_and_no_control_is_undecided(tmp_path):
    files = {"run.d2o": snapshots(tmp_path, "d2o", {1000: CURVE[1000]})}
    found = study().conclude(files)
    assert found.verdict == "undecided" and found.control == {}


def test_the_four_files_are_the_same_bytes_each_time(tmp_path):
    files = {"run.d2o": snapshots(tmp_path, "d2o", CURVE), "control": measured(tmp_path, "edm", (7.0, 7.1, 6.9))}
    written = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        run_study(study={**BLOCK, "control": "edm"}, name="fd", files=files, output=folder)
        written.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert written[0] == written[1] and set(written[0]) == {"fd.npz", "fd.json", "fd.svg", "fd.md"}
    found = read_json(tmp_path / "one" / "fd.json")
    assert (found["study"], found["verdict"]) == ("fd", "confirmed")
    assert set(found) >= {"rule", "numbers", "control", "choices"} and len(found["files"]["run.d2o"]) == 6
    assert b"confirmed" in written[0]["fd.md"] and written[0]["fd.svg"].startswith(b"<svg")


def test_files_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ValueError, match="study fd: .*control"):
        run_study(study=BLOCK, name="fd", files={"run.d2o": [], "control": []}, output=tmp_path)
    path = tmp_path / "old.json"
    write_json(path, {"model": "d2o@64", "seeds": "0-9", "values": {"frechet": 1.0}})
    with pytest.raises(ValueError, match="old.json: got no .*better"):
        study().conclude({"run.d2o": [path]})


def test_the_verb_runs_a_study_from_its_config_block(tmp_path, capsys):
    files = {"run.d2o": snapshots(tmp_path, "d2o", CURVE), "control": measured(tmp_path, "edm", (7.0, 7.1, 6.9))}
    block = {"name": "images_seen", "runs": ["d2o"], "sampler": "one_step", "metric": "fd", "value": "frechet"}
    block |= {"seeds": list(SEEDS), "control": "edm"}
    paths = json.dumps({name: list(map(str, group)) for name, group in files.items()})
    options = ["--study", json.dumps(block), "--name", "fd", "--files", paths, "--output", str(tmp_path / "out")]
    assert main(["study", *options]) == 0
    assert capsys.readouterr().out == "fd: confirmed\n"
    assert read_json(tmp_path / "out" / "fd.json")["options"] == block
