"""The lock of a run's launcher, and the code that a resumed run keeps."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading

import pytest

from onestep.config import Launch
from onestep.launch.journal import Job, Journal
from onestep.launch.submission import Request, submit
from onestep.training.assignment import Assignment, Inputs

HOLD = """
import sys, time
from pathlib import Path
from onestep.launch.journal import Journal
with Journal(Path(sys.argv[1])).watching() as is_watcher:
    print(is_watcher, flush=True)
    time.sleep(60)
"""


def test_one_launcher_holds_the_lock_until_it_is_killed(tmp_path):
    journal = Journal(tmp_path / "work")
    holder = subprocess.Popen([sys.executable, "-c", HOLD, journal.folder], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "True\n"
    with journal.watching() as is_watcher:
        assert not is_watcher
    assert journal.watcher == f"process {holder.pid} on {socket.gethostname()}"
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    with journal.watching() as is_watcher:
        assert is_watcher and journal.watcher == f"process {os.getpid()} on {socket.gethostname()}"


def test_the_cluster_of_the_newest_submission_is_kept(tmp_path):
    journal = Journal(tmp_path)
    assert journal.cluster.name is None
    journal.intend("x", cluster="other")
    assert Journal(tmp_path).cluster.name == "other"
    job = {"job_id": "7", "name": "x", "submitted_at": 0.0, "host": "h", "python": "p", "attempt": 0}
    journal.record(Job(**job, images_seen=0, processes=1, cluster="other"))
    assert not journal.is_submitting and Journal(tmp_path).cluster.name == "other"
    (tmp_path / "job.json").write_text(json.dumps({**job, "images_seen": 0, "processes": 1}))  # of the version before
    assert Journal(tmp_path).cluster.name is None


def test_a_launcher_of_an_older_version_is_excluded(tmp_path):
    with Journal(tmp_path).watching(), open(tmp_path / "launch.lock", "a+") as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with open(tmp_path / "launch.lock", "a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with Journal(tmp_path).watching() as is_watcher:
            assert not is_watcher


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_flock_is_named(tmp_path, monkeypatch, code):
    def flock(descriptor, operation):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(ValueError, match="launch.lock: ") as error, Journal(tmp_path).watching():
        pass
    assert os.strerror(code) in str(error.value)


@pytest.mark.parametrize("kept", ["", "class Assignment:\n    inputs: str\n    another_field: str\n"])
def test_code_of_another_version_that_cannot_read_the_task_is_refused(tmp_path, kept):
    journal = Journal(tmp_path / "work")
    (tmp_path / "work/code/onestep/training").mkdir(parents=True)
    (tmp_path / "work/code/onestep/training/assignment.py").write_text(kept)
    (tmp_path / "work/state-640").mkdir()
    inputs = Inputs(run=tmp_path / "run.yaml", data=tmp_path / "d.zip")
    assignment = Assignment(inputs=inputs, state=tmp_path, code_in_spec=False, state_seconds=300.0)
    with pytest.raises(ValueError, match=f"^{journal.folder / 'code'}: ") as error:
        submit(Request(run="r", assignment=assignment, site=Launch()), journal=journal, attempt=0)
    assert len(str(error.value).splitlines()) == 1 and not journal.is_submitting


def test_a_watcher_is_named_that_writes_its_name_only_after_it_has_the_lock(tmp_path):
    """Two launchers that start together: the second may read the file between the lock and the name."""
    journal, path = Journal(tmp_path), tmp_path / "launch.lock"
    path.touch()
    writer = threading.Timer(0.2, path.write_text, ["process 7 on a host"])
    writer.start()
    assert journal.watcher == "process 7 on a host"
    writer.join()
    path.write_text("")
    assert journal.watcher == "another process"
