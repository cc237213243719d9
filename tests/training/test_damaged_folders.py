"""A work folder whose files are gone or damaged is mended, or trained again, and ends with the bytes of a whole one."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from onestep.checkpoints.digests import read_record
from onestep.checkpoints.snapshot import read_snapshot, write_snapshot
from onestep.cli import main
from onestep.files import canonical_json, sealed, sha256_of_file, sha256_of_text, write_json
from onestep.fingerprint import Fingerprints
from onestep.training.assignment import Assignment, Inputs
from onestep.training.log import write_snapshots
from onestep.training.publication import is_published, publish
from onestep.training.run import carry_out

_RUN, _LOG, _DONE = "digits_edm", "log.jsonl", "done.json"
# Steps of 32 images; a snapshot after one, two and four.
_SNAPSHOTS = (32, 64, 128)


@pytest.fixture(scope="module")
def document(bench) -> Path:
    """A run of four steps."""
    return bench.document(_RUN, batch=32, images=128, snapshots=list(_SNAPSHOTS))


@pytest.fixture(scope="module")
def whole(bench, document, tmp_path_factory) -> Path:
    """The folder of an undisturbed training: `state`, `runs`, and `half`, the state after three steps."""
    folder = tmp_path_factory.mktemp("whole")
    assert main(bench.arguments(document, state=folder / "state", output=folder / "runs")) == 0
    left = iter(range(3))
    inputs = Inputs(run=document, data=bench.folder / "digits.zip")
    assignment = Assignment(inputs=inputs, state=folder / "half", code_in_spec=False, state_seconds=0.0)
    code = Fingerprints().of_training(assignment.document())
    stopped = {"code": code, "output": None, "stop": lambda: next(left, None) is None}
    assert not carry_out(assignment, folder=assignment.folder(code), **stopped)
    return folder


def published(folder: Path) -> dict[str, str]:
    """Return the digests of the snapshots, and the losses of the log."""
    found = {path.name: sha256_of_file(path) for path in (folder / _RUN / "snapshots").iterdir()}
    records = [json.loads(line) for line in (folder / _RUN / _LOG).read_text().splitlines()]
    return found | {"losses": json.dumps([[each["images_seen"], each["losses"]] for each in records])}


@pytest.fixture
def attempt(bench, document, whole, tmp_path) -> Callable[..., tuple[int, bool]]:
    """Damage a copy of a state folder of `whole`, train, and return the exit code and whether the result is right."""

    def train(state: str, damage: Callable[[Path], object]) -> tuple[int, bool]:
        shutil.copytree(whole / state, tmp_path / "state", symlinks=True)
        (folder,) = (tmp_path / "state" / _RUN).iterdir()
        damage(folder)
        code = main(bench.arguments(document, state=tmp_path / "state", output=tmp_path / "runs"))
        return code, code == 0 and published(tmp_path / "runs") == published(whole / "runs")

    return train


def test_what_is_written_lists_its_files_with_their_digests(whole):
    (folder,) = (whole / "state" / _RUN).iterdir()
    done = read_record(folder / _DONE)
    assert set(done["files"]) == {_LOG, *(f"snapshots/{count}.safetensors" for count in _SNAPSHOTS)}
    for name, digest in done["files"].items():
        assert digest == sha256_of_file(folder / name) == sha256_of_file(whole / "runs" / _RUN / name)
        if name != _LOG:
            assert os.path.samefile(folder / name, whole / "runs" / _RUN / name), "quotas are small"
    assert read_record(whole / "runs" / _RUN / "summary.json") == done
    (half,) = (whole / "half" / _RUN).iterdir()
    manifest = json.loads((max(half.glob("state-*")) / "manifest.json").read_text())
    assert set(manifest["values"]["files"]) == {"snapshots/32.safetensors", "snapshots/64.safetensors"}


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()
    path.write_bytes(content)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def _foreign(path: Path) -> None:
    shutil.copyfile(path.with_name("64.safetensors"), path)


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _linked(path: Path) -> None:
    path.rename(path.with_suffix(".moved"))
    path.symlink_to(path.with_suffix(".moved").name)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        (_LOG, Path.unlink),
        pytest.param(_LOG, _flip, marks=pytest.mark.long),
        pytest.param(_LOG, _cut, marks=pytest.mark.long),
        pytest.param(_LOG, _pipe, marks=pytest.mark.long),
        pytest.param(_LOG, _linked, marks=pytest.mark.long),
        ("snapshots/32.safetensors", _flip),
        pytest.param("snapshots/32.safetensors", _foreign, marks=pytest.mark.long),
        pytest.param("snapshots/32.safetensors", _pipe, marks=pytest.mark.long),
        pytest.param("snapshots/64.safetensors", Path.unlink, marks=pytest.mark.long),
    ],
)
def test_a_resume_without_its_files_goes_back(attempt, caplog, name, damage):
    caplog.set_level("WARNING")
    assert attempt("half", lambda folder: damage(folder / name)) == (0, True)
    assert Path(name).name in caplog.text


def test_an_older_state_whose_files_are_whole_is_used(attempt, caplog):
    caplog.set_level("INFO")

    def damage(folder: Path) -> None:
        # As if the snapshot had been damaged after the older state.
        older, newer = sorted(folder.glob("state-*"))
        manifest = json.loads((newer / "manifest.json").read_text())
        del manifest["sha256"]
        manifest["values"]["files"]["snapshots/64.safetensors"] = "0" * 64
        write_json(newer / "manifest.json", {**manifest, "sha256": sha256_of_text(canonical_json(manifest))})
        assert older.name.endswith("064")

    assert attempt("half", damage) == (0, True)
    assert "resumed at 64 images" in caplog.text and "64.safetensors has changed" in caplog.text


@pytest.mark.parametrize("content", ["[" * 50_000, '{"format": "onestep-training-state-1"}', "\xff"])
def test_a_manifest_of_another_shape_is_passed_over(attempt, content):
    def damage(folder: Path) -> None:
        (max(folder.glob("state-*")) / "manifest.json").write_text(content, encoding="latin-1")

    assert attempt("half", damage) == (0, True)


def test_a_state_of_an_earlier_version_needs_its_log_and_its_snapshots(attempt, caplog):
    def damage(folder: Path) -> None:
        for path in folder.glob("state-*/manifest.json"):
            manifest = json.loads(path.read_text())
            del manifest["sha256"], manifest["values"]["files"], manifest["values"]["log_sha256"]
            write_json(path, {**manifest, "sha256": sha256_of_text(canonical_json(manifest))})
        content = (folder / _LOG).read_bytes()
        (folder / _LOG).write_bytes(b"\0" * len(content))

    assert attempt("half", damage) == (0, True)
    assert _LOG in caplog.text


@pytest.mark.parametrize("content", ["{}", "null", '{"images_seen": 64}', "[" * 50_000])
def test_done_json_of_another_shape_is_trained_again(attempt, caplog, content):
    caplog.set_level("WARNING")
    done = attempt("state", lambda folder: (folder / _DONE).write_text(content, encoding="latin-1"))
    assert done == (0, True) and _DONE in caplog.text


@pytest.mark.parametrize("content", ["{}", '{"images_seen": 128}'])
def test_half_a_run_is_never_published_as_a_finished_one(attempt, content):
    assert attempt("half", lambda folder: (folder / _DONE).write_text(content)) == (0, True)


def test_a_number_of_done_json_that_has_changed_is_found(attempt, caplog):
    def damage(folder: Path) -> None:
        path = folder / _DONE
        path.write_text(path.read_text().replace('"world_size": 1', '"world_size": 3'))

    assert attempt("state", damage) == (0, True)
    assert _DONE in caplog.text


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("snapshots/64.safetensors", _flip),
        pytest.param("snapshots/32.safetensors", _pipe, marks=pytest.mark.long),
        pytest.param(_LOG, Path.unlink, marks=pytest.mark.long),
    ],
)
def test_a_finished_run_with_damaged_files_is_trained_again(attempt, caplog, name, damage):
    caplog.set_level("WARNING")
    assert attempt("state", lambda folder: damage(folder / name)) == (0, True)
    assert Path(name).name in caplog.text and "again" in caplog.text


def test_files_that_are_whole_where_they_are_published_are_taken_from_there(bench, document, whole, tmp_path):
    for each in ("state", "runs"):
        shutil.copytree(whole / each, tmp_path / each)
    (folder,) = (tmp_path / "state" / _RUN).iterdir()
    _flip(folder / "snapshots/32.safetensors")
    (folder / _LOG).unlink()
    target = tmp_path / "runs" / _RUN
    publish(folder, target)
    assert is_published(folder, target) and published(tmp_path / "runs") == published(whole / "runs")
    assert (folder / _LOG).read_bytes() == (target / _LOG).read_bytes()


def test_what_a_launcher_publishes_is_compared_first(whole, tmp_path):
    shutil.copytree(whole / "state", tmp_path / "state")
    (folder,) = (tmp_path / "state" / _RUN).iterdir()
    _flip(folder / "snapshots/128.safetensors")
    with pytest.raises(ValueError, match=r"128\.safetensors has changed .*Fix: "):
        publish(folder, tmp_path / "runs" / _RUN)
    assert not (folder / _DONE).exists() and not (tmp_path / "runs").exists()
    assert not is_published(folder, tmp_path / "runs" / _RUN)


def test_a_finished_run_of_an_earlier_version_is_published_as_before(attempt, whole, caplog):
    def damage(folder: Path) -> None:
        done = read_record(folder / _DONE)
        del done["files"], done["content_sha256"]
        (folder / _DONE).write_text(json.dumps(done))

    assert attempt("state", damage) == (0, True)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_a_lock_that_is_a_link_leaves_the_file_behind_it(attempt, tmp_path, capsys):
    (tmp_path / "victim").write_text("precious")

    def damage(folder: Path) -> None:
        (folder / "lock").unlink(missing_ok=True)
        (folder / "lock").symlink_to(tmp_path / "victim")

    code, _ = attempt("half", damage)
    assert (tmp_path / "victim").read_text() == "precious"
    assert code == 1 and "lock" in capsys.readouterr().err


def test_a_seal_is_of_the_whole_record():
    record = sealed({"a": 1, "b": {"c": [1.5]}})
    assert list(record)[-1] == "content_sha256" and sealed({"b": {"c": [1.5]}, "a": 1}) == record
    assert sealed({"a": 2, "b": {"c": [1.5]}})["content_sha256"] != record["content_sha256"]


def test_a_teacher_that_is_not_finite_is_named_before_the_first_step(bench, tmp_path, capsys):
    snapshot = read_snapshot(bench.folder / "teacher.safetensors")
    next(iter(snapshot.state_dict.values())).view(-1)[0] = float("nan")
    write_snapshot(tmp_path / "t.safetensors", snapshot.state_dict, snapshot.config)
    document = bench.document("digits_d2o", batch=32, images=64, snapshots=[64])
    words = bench.arguments(document, state=tmp_path / "state", output=tmp_path / "runs")
    words[words.index("--teacher") + 1] = str(tmp_path / "t.safetensors")
    assert main(words) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "t.safetensors" in line and "learning rate" not in line
    assert not list(tmp_path.rglob("log.jsonl"))


def test_weights_that_diverge_are_not_published(tmp_path):
    average = SimpleNamespace(published=lambda: {"w": torch.tensor([1.0, float("inf")])})
    run = SimpleNamespace(images=128, objective={"name": "edm"}, frozen_precision=None)
    kept = {"averages": {"": average}, "configs": {}, "published": "generator"}
    training = SimpleNamespace(name="a", run=run, snapshots=(64, 128), **kept)
    assert write_snapshots(training, before=64, now=96, folder=tmp_path) == {}
    with pytest.raises(ValueError, match=r"a: snapshots/128\.safetensors: w: "):
        write_snapshots(training, before=96, now=128, folder=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["", "null", "[1, 2]", "run: [", "run: digits_edm\nbatch: 3", "\xff", "[" * 50_000])
def test_a_run_yaml_of_another_shape_is_one_line(bench, tmp_path, capsys, content):
    (tmp_path / "run.yaml").write_text(content, encoding="latin-1")
    words = ["train", "--run", str(tmp_path / "run.yaml"), "--data", str(bench.folder / "digits.zip")]
    assert main([*words, "--state", str(tmp_path / "state"), "--output", str(tmp_path / "runs")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "run.yaml" in line and not (tmp_path / "state").exists()
