"""`make setup` says in one line what is missing."""

from __future__ import annotations

import os
import subprocess

import pytest

from tiny import REPOSITORY


def setup(folder, python):
    """Run envs/setup.sh in `folder` with an interpreter."""
    (folder / "envs").mkdir()
    (folder / "envs/requirements.lock").touch()
    (folder / "pyproject.toml").touch()
    command = [str(REPOSITORY / "envs/setup.sh"), str(python), ".venv"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def interpreter(folder, *, version="3.11.7", new_enough=0, venv=0):
    """Write a stand-in for Python that answers the three questions of the script."""
    path = folder / "python"
    path.write_text(
        "#!/bin/sh\n"
        f'case "$2" in *python_version*) echo {version};; *version_info*) exit {new_enough};;\n'
        f"*ensurepip*) exit {venv};; esac\n"
    )
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("answers", "reported"),
    [
        ({"version": "3.9.2", "new_enough": 1}, "got Python 3.9.2, expected 3.11 or newer"),
        ({"venv": 1}, "without the venv module. Fix: install it (Debian: apt install python3-venv)"),
    ],
)
def test_what_an_interpreter_lacks_is_one_line(tmp_path, answers, reported):
    failed = setup(tmp_path, interpreter(tmp_path, **answers))
    assert failed.returncode == 1
    (line,) = failed.stderr.strip().splitlines()
    assert line.startswith("setup: ") and reported in line


def test_no_interpreter_is_one_line(tmp_path):
    failed = setup(tmp_path, "python-of-nowhere")
    assert failed.returncode == 1
    (line,) = failed.stderr.strip().splitlines()
    assert "no 'python-of-nowhere' on PATH" in line


def test_too_little_disk_is_one_line(tmp_path):
    tools = tmp_path / "tools"
    tools.mkdir()
    df = tools / "df"
    df.write_text("#!/bin/sh\necho head\necho disk 1 1 2000000 1% /\n")
    df.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
    (tmp_path / "envs").mkdir()
    (tmp_path / "envs/requirements.lock").touch()
    (tmp_path / "pyproject.toml").touch()
    command = [str(REPOSITORY / "envs/setup.sh"), str(interpreter(tmp_path)), ".venv"]
    failed = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert failed.returncode == 1
    (line,) = failed.stderr.strip().splitlines()
    assert "2 GB free" in line and "expected 6 GB" in line
