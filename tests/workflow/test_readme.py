"""Every command of the README, and every cell of the notebook, on the results of the tiny pipeline."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onestep.cli import main
from tiny import REPOSITORY

# Of lines that begin with another one: CI clones and runs `make demo` and `make test`, tests of the wheel install it.
_ELSEWHERE = ("git", "cd", "pip")


def commands() -> list[list[str]]:
    """Return the commands in the README's code blocks, as words."""
    blocks = re.findall(r"^```\n(.*?)^```", (REPOSITORY / "README.md").read_text(), flags=re.M | re.S)
    lines = [shlex.split(line, comments=True) for block in blocks[:-1] for line in block.splitlines()]
    text = [" ".join(shlex.quote(word) if word != "&&" else word for word in line) for line in lines]
    return [shlex.split(part) for line in text for part in line.split("&&")]


def pictures(folder: Path) -> None:
    """Write 120 images of 16x16 in three class folders."""
    random = np.random.default_rng(0)
    for number in range(120):
        path = folder / "pictures" / "abc"[number % 3] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)


def test_every_command_of_the_readme_runs(finished, tmp_path, monkeypatch):
    shutil.copytree(finished.work, tmp_path / "demo")
    pictures(tmp_path)
    done = []
    for words in commands():
        if words[0] == "make":
            subprocess.run(["make", "--dry-run", *words[1:]], cwd=REPOSITORY, check=True, capture_output=True)
        elif words[0] == "onestep":
            monkeypatch.chdir(tmp_path if words[1] in ("init", "run") else tmp_path / "demo")
            # A run of the proposed config takes minutes; here its plan.
            assert main([*words[1:], *(["--dry-run"] if words[1] == "run" else [])]) == 0, words
        else:
            assert words[0] in _ELSEWHERE
        done.append(words[1])
    assert {"init", "run", "status", "sample", "compare", "export", "demo", "test"} <= set(done)
    with Image.open(tmp_path / "demo" / "samples.png") as picture:
        assert picture.width >= 4 * 16
    assert (tmp_path / "demo" / "curves.png").stat().st_size > 0
    assert (tmp_path / "demo" / "exported" / "generator.safetensors").is_file()


def test_every_cell_of_the_notebook_runs(finished, tmp_path, monkeypatch, capsys):
    (tmp_path / "docs" / "notebooks").mkdir(parents=True)
    (tmp_path / "demo").symlink_to(finished.work)
    monkeypatch.chdir(tmp_path / "docs" / "notebooks")
    cells = json.loads((REPOSITORY / "docs" / "notebooks" / "first_steps.ipynb").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert all(
        cell["outputs"] for cell in cells if cell["cell_type"] == "code" and "def " not in "".join(cell["source"])
    )
    names: dict[str, object] = {}
    for cell in code:
        exec(cell.replace("range(2000)", "range(64)").replace("steps=18", "steps=2"), names)
    assert "320.safetensors" in capsys.readouterr().out
    assert tuple(names["pixels"].shape) == (32, 16, 16, 1)
    assert names["generated"].shape[0] == 64


@pytest.mark.parametrize("page", sorted(REPOSITORY.glob("docs/tasks/*.md")), ids=lambda page: page.stem)
def test_the_commands_of_a_page_are_commands_of_onestep(page):
    from onestep import cli

    verbs = [name for group in cli.GROUPS.values() for name in group]
    for block in re.findall(r"^```\n(.*?)^```", page.read_text(), flags=re.M | re.S):
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["onestep"]:
                verb = next(name for name in verbs if words[1 : 1 + len(name.split())] == name.split())
                arguments = words[1 + len(verb.split()) :]
                cli.verb_app(verb).parse_args(arguments, exit_on_error=False, print_error=False)


def test_the_verb_run_shows_each_table_once_also_where_nothing_is_to_be_done(finished, tmp_path):
    work = tmp_path / "work"
    shutil.copytree(finished.work, work, symlinks=True)
    (work / "results" / "tables" / "chosen.md").unlink()
    for expected in ({"Chosen": 1}, {"Chosen": 1, "Digits, 16x16": 1}):
        command = [sys.executable, "-m", "onestep", "run", "--config", str(work / "config.yaml"), "--cores", "1"]
        shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        headings = Counter(line.removeprefix("### ") for line in shown.splitlines() if line.startswith("### "))
        assert {title: headings[title] for title in expected} == expected
        assert "results/report/index.html" in shown
