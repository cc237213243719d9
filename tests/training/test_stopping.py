"""A training that is asked to stop saves its state at the next step, leaves, and ends bitwise as an undisturbed one."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import yaml

from onestep.checkpoints.training_state import read_training_state, write_training_state
from onestep.config.run import run_of
from onestep.distributed import Ranks
from onestep.exits import Exit
from onestep.training.log import Settled, Window
from onestep.training.loop import record_of, take_step
from onestep.training.resume import Resume
from onestep.training.run import assemble, exclusive
from onestep.training.step import PhaseReport
from onestep.training.stopping import Stop, listening, never
from preloaded import Program

ALONE = Ranks(rank=0, world=1, device=torch.device("cpu"))
_TIMES = ("time", "seconds", "images_per_second", "memory_mib")


def start_pair(arguments, *, stop_by="SIGTERM", stop_at=(0, 0)):
    """Start two ranks of `onestep ARGUMENTS`; a rank is signalled in its step `stop_at`, from 1."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    signals = [
        {"RANK": str(rank), "LOCAL_RANK": "0", "STOP_BY": stop_by, "STOP_AT": str(stop_at[rank])} for rank in range(2)
    ]
    worker = Path(__file__).with_name("stopping_worker.py")
    return [Program(worker, *arguments, environment={**os.environ, **address, **each}) for each in signals]


def run_pair(arguments, *, expect, **signals):
    """Run two ranks to their end, which is to be the exit code `expect`; return what each said."""
    ranks = start_pair(arguments, **signals)
    said = [rank.communicate(timeout=300)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [expect, expect], said
    return said


def records(folder):
    """Return the log of a run without what depends on time."""
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in _TIMES} for line in lines]


# Both between two records.
@pytest.mark.parametrize(
    ("run", "by", "at"),
    [
        pytest.param("digits_edm", "SIGTERM", (0, 8), marks=pytest.mark.long, id="edm"),
        pytest.param("digits_d2o", "SIGUSR2", (16, 0), marks=pytest.mark.long, id="d2o"),
    ],
)
def test_stopped_by_a_signal_to_one_of_two_ranks_it_ends_bitwise_equal(bench, tmp_path, run, by, at):
    document = bench.document(run, images=960, snapshots=[320, 960], dropout=0.1)
    straight = bench.arguments(document, state=tmp_path / "a", output=tmp_path / "straight")
    run_pair(straight, expect=Exit.FINISHED)
    stopped = bench.arguments(document, state=tmp_path / "b", output=tmp_path / "stopped")
    leader, other = run_pair(stopped, expect=Exit.STOPPED, stop_by=by, stop_at=at)
    seen = 32 * max(at)
    (state,) = (tmp_path / "b").rglob("state-*")
    assert state.name == f"state-{seen:012d}" and not list((tmp_path / "stopped").rglob("summary.json"))
    assert f"at {seen} of 960 images" in leader and str(state.parent) in leader
    assert "Traceback" not in leader + other and "stopped" not in other
    leader, _ = run_pair(stopped, expect=Exit.FINISHED)
    assert f"resumed at {seen} images" in leader
    whole, parts = (tmp_path / name / run for name in ("straight", "stopped"))
    for name in ("320", "960"):
        path = f"snapshots/{name}.safetensors"
        assert (parts / path).read_bytes() == (whole / path).read_bytes()
    assert records(parts) == records(whole) and len(records(whole)) == 5


@pytest.fixture
def begun(bench):
    """Return what makes the tiny edm run anew."""
    document = yaml.safe_load(bench.document("digits_edm", dropout=0.1).read_text())
    return lambda: assemble(run_of(document), files=bench.files(document), ranks=ALONE)


def resumed(training, folder):
    """Return the images seen of a training's newest state, and its window."""
    resume = Resume(training, folder=folder, ranks=ALONE, code="")
    return resume.restore(), resume.window


def steps(training, window, *, begin, end):
    """Take steps number `begin` to `end - 1`, and return the record of the window then."""
    for step in range(begin, end):
        window.add(take_step(training, images_seen=step * training.run.batch, ranks=ALONE))
    return record_of(training, images_seen=end * training.run.batch, window=window, rate=0.0, seconds=0.0, ranks=ALONE)


def test_a_window_that_is_cut_in_two_has_the_record_of_a_whole_one(begun, tmp_path):
    whole, cut, after = begun(), begun(), begun()
    assert resumed(whole, tmp_path)[0] == 0
    expected = steps(whole, Window(), begin=0, end=5)
    resume = Resume(cut, folder=tmp_path, ranks=ALONE, code="")
    resume.restore()
    steps(cut, resume.window, begin=0, end=3)
    resume.save(images_seen=96, log=Settled(0, ""), window=resume.window)
    images_seen, window = resumed(after, tmp_path)
    assert images_seen == 96
    found = steps(after, window, begin=3, end=5)
    assert found | dict.fromkeys(_TIMES) == expected | dict.fromkeys(_TIMES)


def test_a_state_without_a_window_begins_with_an_empty_one(begun, tmp_path):
    training = begun()
    resume = Resume(training, folder=tmp_path / "new", ranks=ALONE, code="")
    resume.restore()
    steps(training, resume.window, begin=0, end=2)
    resume.save(images_seen=64, log=Settled(0, ""), window=resume.window)
    state = read_training_state(tmp_path / "new")
    del state.values["window"], state.tensors["window.sums"]
    write_training_state(tmp_path / "old", images_seen=64, tensors=state.tensors, values=state.values)
    images_seen, window = resumed(begun(), tmp_path / "old")
    assert images_seen == 64 and window.replaced() == (0, 0.0) and window.state(ranks=ALONE)["counts"] == []


def test_ranks_of_another_number_take_the_mean_of_a_window():
    counts = [["losses", "generator", 4], ["observed", "snr", 2]]
    sums = torch.tensor([[4.0, 1.0], [12.0, 3.0]], dtype=torch.float64)
    window = Window()
    window.restore({"sums": sums, "counts": counts, "replaced": 6, "entries": 60}, ranks=ALONE)
    assert window.means(ranks=ALONE) == {"losses": {"generator": 2.0}, "observed": {"snr": 1.0}}
    assert window.replaced() == (6, 0.1)
    report = PhaseReport(name="generator", loss=torch.tensor(2.0), observed={}, replaced=torch.tensor(0), entries=60)
    window.add([report])
    assert window.means(ranks=ALONE)["losses"] == {"generator": 2.0} and window.replaced() == (6, 0.05)


def test_handlers_only_set_a_flag_and_go_again():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR2)]
    for number in (signal.SIGTERM, signal.SIGUSR2):
        with listening() as stop:
            assert not stop.asked()
            os.kill(os.getpid(), number)
            assert stop.asked()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR2)] == before


@pytest.fixture
def held(tmp_path):
    """The lock of a folder, held by somebody else."""
    with open(tmp_path / "lock", "a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        (tmp_path / "lock.owner").write_text("process 1 on elsewhere")
        yield file


def test_a_lock_that_is_let_go_in_time_is_taken(held, tmp_path, caplog):
    caplog.set_level("INFO")
    release = threading.Timer(1.5, fcntl.flock, (held, fcntl.LOCK_UN))
    release.start()
    with exclusive(tmp_path, ranks=ALONE, seconds=60, stop=never) as mine:
        assert mine and (tmp_path / "lock.owner").read_text() == f"process {os.getpid()} on {socket.gethostname()}"
    release.join()
    (message,) = caplog.messages
    assert str(tmp_path) in message and "60 s" in message and "process 1 on elsewhere" in message


def test_a_lock_that_is_not_let_go_is_an_error(held, tmp_path):
    for seconds in (0.0, 0.5):
        began = time.monotonic()
        with (
            pytest.raises(ValueError, match="process 1 on elsewhere"),
            exclusive(tmp_path, ranks=ALONE, seconds=seconds, stop=never),
        ):
            pass
        assert seconds <= time.monotonic() - began < 30


def test_waiting_for_a_lock_ends_when_asked_to_stop(held, tmp_path):
    stop = Stop()
    threading.Timer(0.5, stop.ask).start()
    with exclusive(tmp_path, ranks=ALONE, seconds=60, stop=stop.asked) as mine:
        assert not mine


def test_assignment_and_publication_need_no_torch():
    code = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torch":
            raise ImportError("torch is blocked")
sys.meta_path.insert(0, Blocker())
import onestep.training.assignment, onestep.training.stopping
import onestep.launch.task, onestep.launch.local
"""
    subprocess.run([sys.executable, "-c", code], check=True)
