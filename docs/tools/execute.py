"""Executes a notebook in place, so that it contains its outputs.

Needs nbclient and ipykernel, which are not part of the environment.

Usage, after `make demo`: python docs/tools/execute.py docs/notebooks/first_steps.ipynb
"""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    path = Path(sys.argv[1])
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, resources={"metadata": {"path": str(path.parent)}}).execute()
    for cell in notebook.cells:
        cell.metadata = {}  # times of execution
        for output in cell.get("outputs", []):
            output.get("data", {}).pop("image/jpeg", None)  # a second copy of each picture
    nbformat.write(notebook, path)
