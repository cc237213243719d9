"""Snakemake with this checkout's Snakefile and package in a working directory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tiny import REPOSITORY


def run_snakemake(work: Path, *arguments: str, **environment: str) -> tuple[int, str]:
    """Run Snakemake in a working directory on one core; return its code and what it printed."""
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "--snakefile",
        str(REPOSITORY / "Snakefile"),
        "--directory",
        str(work),
    ]
    variables = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    variables |= {"PYTHONPATH": str(REPOSITORY / "src"), **environment}
    variables["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{variables['PATH']}"
    command += ["--cores", "1", "--scheduler", "greedy", *arguments]
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def snakemake(work: Path, *arguments: str) -> str:
    """Return what Snakemake printed, after a run that succeeded."""
    code, text = run_snakemake(work, *arguments)
    assert code == 0, text
    return text
