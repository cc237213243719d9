"""The one build step that pyproject.toml cannot name: a wheel contains the workflow beside the package.

In a clone and an editable install, `onestep run` takes Snakefile, workflow/, profiles/ and envs/ from the repository.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

WORKFLOW = ("Snakefile", "workflow", "profiles", "envs")


class BuildWithWorkflow(build_py):
    """Copies the workflow to `onestep/_workflow` of the build."""

    def run(self):
        """Build the package, then copy."""
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib) / "onestep" / "_workflow"
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for name in WORKFLOW:
            source = Path(name)
            copy = shutil.copytree if source.is_dir() else shutil.copy2
            copy(source, target / name)


setup(cmdclass={"build_py": BuildWithWorkflow})
