"""The packages that a GPU machine may lack: download their wheels, and install those that are missing into a folder.

Nothing here imports the package, or anything that is not part of Python.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = (
    *("pydantic", "pydantic-core", "annotated-types", "typing-inspection", "typing-extensions"),
    *("cyclopts", "attrs", "docstring-parser", "rich", "rich-rst", "docutils", "markdown-it-py", "mdurl", "pygments"),
    *("pytest", "iniconfig", "pluggy", "packaging"),
    *("timm", "pyyaml", "pillow", "tqdm"),
)
"""What training, sampling, metrics and their tests import beyond torch, numpy, scipy and safetensors."""

_REPOSITORY = Path(__file__).parents[2]
_LOCK = _REPOSITORY / "envs" / "requirements.lock"
_PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def pinned() -> list[str]:
    """Return the packages with the versions of the lock file, as pip requires them."""
    lines = _LOCK.read_text(encoding="utf-8").splitlines()
    return [next(line for line in lines if line.startswith(f"{name}==")) for name in PACKAGES]


def download(folder: Path, *, python_version: str) -> int:
    """Download the wheels for Linux on x86-64 and a version of Python, whatever this one is."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--python-version", python_version, "--implementation", "cp", "--dest", str(folder)]
    command += [word for platform in _PLATFORMS for word in ("--platform", platform)]
    return subprocess.run([*command, *pinned()], check=False).returncode


def install(folder: Path, target: Path) -> int:
    """Install into `target` the wheels of packages that this Python lacks, or has in another major version."""
    missing = [wheel for wheel in sorted(folder.glob("*.whl")) if not _is_there(wheel)]
    if not missing:
        return 0
    print("packages:", ", ".join(wheel.name.partition("-")[0] for wheel in missing), flush=True)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
    command += ["--no-cache-dir", "--upgrade", "--target", str(target), *map(str, missing)]
    return subprocess.run(command, check=False).returncode


def _is_there(wheel: Path) -> bool:
    name, needed, *_ = wheel.name.split("-")
    try:
        found = version(re.sub(r"[-_.]+", "-", name))
    except PackageNotFoundError:
        return False
    # pydantic and its core fit each other in one version only.
    if name.startswith("pydantic"):
        return found == needed
    return found.partition(".")[0] == needed.partition(".")[0] and _numbers(found) >= least().get(name.lower(), ())


def least() -> dict[str, tuple[int, ...]]:
    """Return the least version of each package that the project names, as numbers."""
    document = tomllib.loads((_REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    found = (re.match(r"([A-Za-z0-9-]+)>=([0-9.]+)", line) for line in document["project"]["dependencies"])
    return {each[1].lower(): _numbers(each[2]) for each in found if each}


def _numbers(version_: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version_.partition("+")[0])[:3])


def main() -> int:
    """Download, or install."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("download", "install"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("target", type=Path, nargs="?")
    parser.add_argument("--python-version", default="3.12")
    given = parser.parse_args()
    if given.what == "download":
        return download(given.folder, python_version=given.python_version)
    return install(given.folder, given.target)


if __name__ == "__main__":
    sys.exit(main())
