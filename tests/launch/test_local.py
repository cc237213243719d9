"""Processes on this machine: one that fails ends the others, and its exit code is the run's."""

import os
import signal
import threading
import time

import pytest

from onestep.exits import Exit
from onestep.launch import local


@pytest.fixture
def ranks_run(tmp_path, monkeypatch):
    """Let `python -m onestep CODE` run CODE, by a package of that name ahead of ours on the path."""
    package = tmp_path / "onestep"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text("import os, sys\nexec(sys.argv[1])\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return lambda code, processes: local.run_locally([code], processes=processes)


def test_each_rank_gets_the_variables_of_its_process_group(ranks_run, tmp_path):
    names = ("WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR")
    code = f"open(os.environ['RANK'], 'w').write(' '.join(os.environ[name] for name in {names}))"
    assert ranks_run(code, 3) == 0
    assert [(tmp_path / str(rank)).read_text() for rank in range(3)] == [f"3 {rank} 127.0.0.1" for rank in range(3)]


def test_a_failing_rank_ends_the_others_and_its_code_is_returned(ranks_run):
    began = time.monotonic()
    assert ranks_run("import time; sys.exit(7) if os.environ['RANK'] == '1' else time.sleep(60)", 2) == 7
    assert time.monotonic() - began < 30


def test_a_killed_rank_is_a_failure(ranks_run):
    assert ranks_run("os.kill(os.getpid(), 9) if os.environ['RANK'] == '0' else None", 2) == 128 + 9


_SAVES = """
import signal, time
signal.signal(signal.SIGTERM, lambda *_: (time.sleep(float(os.environ['RANK'])), sys.exit(85)))
open('ready' + os.environ['RANK'], 'w').close()
time.sleep(60)
"""
_IGNORES = """
import signal, time
signal.signal(signal.SIGTERM, lambda *_: open('heard' + os.environ['RANK'], 'a').write('.'))
open('ready' + os.environ['RANK'], 'w').close()
while True: time.sleep(0.1)
"""


def signal_when(path, *numbers):
    """Send this process signals, one when each next of two ranks' files is there."""

    def send():
        for name, number in zip(("ready", "heard"), numbers, strict=False):
            while not all((path / f"{name}{rank}").exists() for rank in range(2)):
                time.sleep(0.02)
            os.kill(os.getpid(), number)

    threading.Thread(target=send, daemon=True).start()


def test_ranks_get_time_to_save_after_sigterm_and_their_code_is_the_runs(ranks_run, tmp_path):
    signal_when(tmp_path, signal.SIGTERM)
    assert ranks_run(_SAVES, 2) == Exit.STOPPED


def test_sigterm_is_forwarded_once_and_a_second_signal_ends_at_once(ranks_run, tmp_path):
    began = time.monotonic()
    signal_when(tmp_path, signal.SIGTERM, signal.SIGTERM)
    assert ranks_run(_IGNORES, 2) == 128 + signal.SIGKILL
    assert [(tmp_path / f"heard{rank}").read_text() for rank in range(2)] == [".", "."]
    assert time.monotonic() - began < 60


def test_ctrl_c_is_a_cancellation_even_if_the_ranks_save(ranks_run, tmp_path):
    signal_when(tmp_path, signal.SIGINT)
    assert ranks_run(_SAVES, 2) == Exit.CANCELLED
