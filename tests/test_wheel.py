"""A wheel contains what `onestep run` needs, once in the repository."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from onestep.workflow import workflow_folder
from tiny import REPOSITORY


def test_a_build_contains_the_workflow_and_every_file_that_its_rules_name(tmp_path):
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(tmp_path)]
    command += ["build_py", "--build-lib", str(tmp_path / "lib")]
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)
    built = tmp_path / "lib/onestep/_workflow"
    for folder in ("workflow/rules", "profiles/local", "profiles/slurm"):
        names = {path.name for path in (REPOSITORY / folder).iterdir()}
        assert names == {path.name for path in (built / folder).iterdir()}
    named = [
        (rules.parent / name).resolve()
        for rules in built.glob("workflow/rules/*.smk")
        for name in re.findall(r'"(\.\./[^"]+)"', rules.read_text())
    ]
    included = [built / name for name in re.findall(r'^include: "(.+)"$', (built / "Snakefile").read_text(), re.M)]
    assert named and included
    assert [path for path in (*named, *included) if not path.is_file()] == []
    assert (tmp_path / "lib/onestep/init/config.yaml.jinja").is_file()


def test_a_clone_runs_its_own_workflow():
    assert workflow_folder() == REPOSITORY
    assert not Path(REPOSITORY / "src/onestep/_workflow").exists()
