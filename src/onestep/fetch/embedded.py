"""Inputs that are on this machine already: shipped by a Python package (as the demo's data), or brought by hand."""

from __future__ import annotations

import shutil
from importlib import metadata
from pathlib import Path

from onestep.files import replacing, sha256_of_file, write_text


def fetch_packaged(package: str, path: str, sha256: str, *, target: Path | str) -> None:
    """Copy a file out of an installed distribution, verify it, and record its hash.

    Args:
        package: The distribution, as pip names it, e.g. `scikit-learn`.
        path: The file inside it, with slashes, e.g. `sklearn/datasets/data/digits.csv.gz`.
        sha256: The hash that the file must have, hexadecimal.
        target: The copy; `{target}.sha256`, beside it, gets the hash as `sha256sum` writes it.

    Raises:
        ValueError: The distribution or the file is not there, or the hash is another; nothing is written then.
    """
    _bring(
        _locate(package, path),
        sha256,
        target=Path(target),
        called=f"{path} of {package} {metadata.version(package)}",
        way_out="install the version that envs/requirements.lock names",
    )


def fetch_file(path: Path | str, sha256: str | None, *, target: Path | str) -> None:
    """Copy a file of this machine, verify it if its hash is known, and record its hash.

    Args:
        path: The file.
        sha256: The hash that the file must have, hexadecimal; None takes it as it is.
        target: The copy; `{target}.sha256`, beside it, gets the hash as `sha256sum` writes it.

    Raises:
        ValueError: The file is not there, or the hash is another; nothing is written then.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no file {path}; bring it there, or correct the path in config.yaml")
    _bring(path, sha256, target=Path(target), called=str(path), way_out="bring the file again")


def _locate(package: str, path: str) -> Path:
    """Return where an installed distribution keeps a file of its list."""
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError as error:
        raise ValueError(f"the Python package {package!r} is not installed; run `make setup`") from error
    places = [Path(str(file.locate())) for file in files if file.as_posix() == path]
    if not places or not places[0].is_file():
        raise ValueError(f"{package} {metadata.version(package)} ships no file {path!r}; check `package` and `path`")
    return places[0]


def _bring(source: Path, sha256: str | None, *, target: Path, called: str, way_out: str) -> None:
    """Copy `source` to `target` and write its hash beside it; refuse another hash than the expected."""
    with replacing(target) as temporary:
        shutil.copyfile(source, temporary)
        found = sha256_of_file(temporary)
        if sha256 is not None and found != sha256.lower():
            raise ValueError(
                f"{called}: found sha256 {found}, expected {sha256}; {way_out}, or, if the new content is wanted, "
                "put its hash into config.yaml"
            )
    write_text(target.with_name(f"{target.name}.sha256"), f"{found}  {target.name}\n")
