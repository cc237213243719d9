"""Processes on this machine: one that fails ends the others, and its exit code is the run's."""

import time

import pytest

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


def test_each_rank_knows_itself_and_its_peers(ranks_run, tmp_path):
    names = ("WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR")
    code = f"open(os.environ['RANK'], 'w').write(' '.join(os.environ[name] for name in {names}))"
    assert ranks_run(code, 3) == 0
    assert [(tmp_path / str(rank)).read_text() for rank in range(3)] == [f"3 {rank} 127.0.0.1" for rank in range(3)]


def test_a_failing_rank_ends_the_others_and_lends_its_code(ranks_run):
    began = time.monotonic()
    assert ranks_run("import time; sys.exit(7) if os.environ['RANK'] == '1' else time.sleep(60)", 2) == 7
    assert time.monotonic() - began < 30


def test_a_killed_rank_is_a_failure(ranks_run):
    assert ranks_run("os.kill(os.getpid(), 9) if os.environ['RANK'] == '0' else None", 2) == 128 + 9
