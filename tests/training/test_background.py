"""States that a thread writes: what is in them, when they are whole, and what becomes of errors."""

from __future__ import annotations

import hashlib
import threading

import pytest
import torch
import yaml

from onestep.checkpoints.training_state import write_training_state
from onestep.config.run import run_of
from onestep.distributed import Ranks
from onestep.training.background import Background
from onestep.training.log import Settled
from onestep.training.loop import take_step
from onestep.training.resume import Resume
from onestep.training.run import assemble

ALONE = Ranks(rank=0, world=1, device=torch.device("cpu"))


@pytest.fixture
def begun(bench, tmp_path):
    """Return a training after two steps, and its states."""
    document = yaml.safe_load(bench.document("digits_edm").read_text())
    training = assemble(run_of(document), files=bench.files(document), ranks=ALONE)
    resume = Resume(training, folder=tmp_path / "states", ranks=ALONE, code="")
    resume.restore()
    steps(training, resume, 0, 1)
    return training, resume


def steps(training, resume, *which):
    for step in which:
        resume.window.add(take_step(training, images_seen=step * training.run.batch, ranks=ALONE))


def digests(folder):
    return {path.parent.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*/*.safetensors")}


@pytest.fixture
def held(monkeypatch):
    """Return what lets a state be written, and whether one waits for it."""
    may, waits = threading.Event(), threading.Event()

    def write(*arguments, **options):
        waits.set()
        assert may.wait(60)
        return write_training_state(*arguments, **options)

    monkeypatch.setattr("onestep.training.resume.write_training_state", write)
    return may, waits


def asked(resume, images_seen, *, stop):
    return resume.stops(images_seen, window=resume.window, log=None, seconds=0.0, stop=lambda: stop)


def test_training_goes_on_while_a_state_is_written_and_does_not_change_it(begun, held, tmp_path):
    training, resume = begun
    may, waits = held
    may.set()
    resume.save(images_seen=64, log=Settled(0, ""), window=resume.window)
    wanted = digests(tmp_path / "states")
    (tmp_path / "states").rename(tmp_path / "direct")
    may.clear()
    assert not asked(resume, 64, stop=False)
    assert waits.wait(60) and not (tmp_path / "states" / "state-000000000064").exists()
    steps(training, resume, 2)
    may.set()
    assert asked(resume, 96, stop=True)
    states = digests(tmp_path / "states")
    assert {"state-000000000064": states["state-000000000064"]} == wanted
    assert set(states) == {"state-000000000064", "state-000000000096"}
    resume.close()


def test_a_stop_without_a_new_step_waits_for_the_state(begun, held, tmp_path):
    _, resume = begun
    may, waits = held
    asked(resume, 64, stop=False)
    assert waits.wait(60)
    threading.Timer(0.2, may.set).start()
    assert asked(resume, 64, stop=True)
    assert (tmp_path / "states" / "state-000000000064" / "manifest.json").is_file()
    resume.close()


def test_an_error_of_a_state_is_raised_by_a_later_step(begun, monkeypatch):
    _, resume = begun

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("onestep.training.resume.write_training_state", full)
    before = threading.active_count()
    asked(resume, 64, stop=False)
    with pytest.raises(OSError, match="No space left"):
        asked(resume, 64, stop=True)
    resume.close()
    assert threading.active_count() == before


def test_an_error_that_nobody_waited_for_is_a_warning_at_the_end(caplog):
    background = Background()
    background.start(lambda: 1 / 0)
    background.close()
    assert "division by zero" in caplog.text


def test_copies_do_not_follow_their_tensors():
    tensor = torch.arange(4.0)
    copies = Background().copied({"a": tensor, "b": tensor[::2]})
    tensor.zero_()
    assert copies.ready()["a"].tolist() == [0, 1, 2, 3] and copies.ready()["b"].tolist() == [0, 2]
