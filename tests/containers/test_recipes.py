"""Dockerfile and onestep.def: one base, one set of steps; checks that need no container engine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tiny import REPOSITORY

CONTAINERS = REPOSITORY / "containers"
SCRIPTS = ("containers/install.sh", "tests/containers/engine.sh", "envs/setup.sh")


def instructions():
    """Return the Dockerfile's instructions as (keyword, rest), continued lines joined."""
    text = re.sub(r"^#.*\n", "", (CONTAINERS / "Dockerfile").read_text(), flags=re.M).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line.strip()]


def all_of(keyword):
    return [rest for name, rest in instructions() if name == keyword]


def section(name):
    """Return the lines of a section of onestep.def."""
    text = (CONTAINERS / "onestep.def").read_text()
    return [line.strip() for line in re.search(rf"^%{name}\n((?:    .*\n)+)", text, flags=re.M)[1].splitlines()]


def header(key):
    return re.search(rf"^{key}: (.+)$", (CONTAINERS / "onestep.def").read_text(), flags=re.M)[1]


def assignments(text):
    """Return the pairs of `name="value"`."""
    return dict(re.findall(r'([\w.]+)="([^"]*)"', text))


def copied():
    """Return where each file or folder of the repository lands in the image."""
    found = {}
    for rest in all_of("COPY"):
        *sources, target = rest.split()
        found |= {each: target + each if target.endswith("/") else target for each in sources}
    return found


def test_every_instruction_is_one_of_docker():
    assert {name for name, _ in instructions()} == {
        "ARG",
        "FROM",
        "LABEL",
        "COPY",
        "RUN",
        "ENV",
        "USER",
        "WORKDIR",
        "CMD",
    }
    assert [name for name, _ in instructions()][:2] == ["ARG", "FROM"]


def test_both_start_from_one_pinned_base():
    assert header("Bootstrap") == "docker"
    assert all_of("ARG") == [f"BASE={header('From')}"]
    assert all_of("FROM") == ["${BASE}"]
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-bookworm", header("From"))


def test_both_take_the_same_steps_and_no_others():
    assert all_of("RUN") == section("post")
    assert [step.split()[0] for step in section("post")] == [copied()["containers/install.sh"]] * 2


def test_both_take_the_same_files():
    assert dict(line.split() for line in section("files")) == copied()
    assert [each for each in copied() if not (REPOSITORY / each).exists()] == []


def test_the_build_context_holds_what_is_copied_and_no_weights():
    first, *rules = [
        each for each in (REPOSITORY / ".dockerignore").read_text().splitlines() if not each.startswith("#")
    ]
    assert first == "*"
    let_in = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    assert let_in == set(copied())
    assert all(rule.startswith(("!", "**/")) for rule in rules)


def test_both_set_the_same_environment():
    (stated,) = all_of("ENV")
    exported = {}
    for line in section("environment"):
        assert line.startswith("export ")
        exported |= assignments(line)
    assert exported == assignments(stated)
    caches = {key: value for key, value in exported.items() if key.endswith(("_HOME", "_DIR"))}
    assert len(caches) >= 5
    assert all(value.split("/")[1] == "cache" for value in caches.values())


def test_both_have_the_same_labels():
    (stated,) = all_of("LABEL")
    labels = dict(line.split(maxsplit=1) for line in section("labels"))
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    prefix = "org.opencontainers.image."
    assert labels.items() <= assignments(stated).items()
    assert labels[f"{prefix}version"] == project["version"]
    assert labels[f"{prefix}licenses"] == project["license"]
    for name in ("Dockerfile", "onestep.def"):
        assert f"onestep{':' if name == 'Dockerfile' else '-'}{project['version']}" in (CONTAINERS / name).read_text()


def test_the_image_runs_any_command_and_not_as_root():
    assert all_of("ENTRYPOINT") == []
    assert all_of("USER") == ["1000:1000"]
    assert "--uid 1000 " in (CONTAINERS / "install.sh").read_text()


def test_the_steps_refuse_what_is_not_the_repository(tmp_path):
    for arguments, reported in (
        ([], "usage"),
        (["environment", str(tmp_path)], "no envs/requirements.lock"),
        (["all", str(REPOSITORY)], "expected environment or package"),
    ):
        done = subprocess.run(["sh", CONTAINERS / "install.sh", *arguments], capture_output=True, text=True)
        assert done.returncode == 1
        assert reported in done.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_read_by_their_shell(script):
    path = REPOSITORY / script
    assert os.access(path, os.X_OK)
    shell = path.read_text().splitlines()[0].rpartition("/")[2].split()[-1]
    done = subprocess.run([shell, "-n", path], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def linter(name):
    """Return a linter of this environment or of the machine."""
    found = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    return found or pytest.skip(f"no {name} here")


def test_hadolint_finds_nothing():
    done = subprocess.run([linter("hadolint"), CONTAINERS / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("script", SCRIPTS)
def test_shellcheck_finds_nothing(script):
    done = subprocess.run([linter("shellcheck"), REPOSITORY / script], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.container
def test_an_engine_builds_the_image_and_it_runs_the_demos_first_stages(tmp_path):
    script = REPOSITORY / "tests" / "containers" / "engine.sh"
    done = subprocess.run([script, tmp_path / "root"], stdout=subprocess.PIPE, text=True)
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1].endswith("demo/results/data/digits.zip")
    assert not (tmp_path / "root").exists()
