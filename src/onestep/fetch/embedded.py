"""Inputs that are on this machine already: shipped by a Python package (as the demo's data), or brought by hand."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

from onestep.fetch.placing import LINKED_FROM, copy_or_link, describe_folder, folder_text
from onestep.files import read_json, replacing, sha256_of_file, write_text


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


def fetch_file(path: Path | str, sha256: str | None, *, target: Path | str, linked_from: int = LINKED_FROM) -> None:
    """Bring a file or folder of this machine, verify it if its hash is known, and record its hash.

    Args:
        path: The file or folder. Of a folder, `target` gets the description (`describe_folder`) and must be `.folder`.
        sha256: The hash that the file, or the folder's listing, must have, hexadecimal; None takes it as it is.
        target: A copy of the file or, of a large one, a link to it; `{target}.sha256`, beside it, gets the hash as
            `sha256sum` writes it.
        linked_from: Bytes from which on a file is large.

    Raises:
        ValueError: There is no such thing, or the hash is another; nothing is written then.
    """
    path, target = Path(path), Path(target)
    if not path.exists():
        raise ValueError(f"there is no file {path}; bring it there, or correct the path in config.yaml")
    if path.is_dir() != (target.suffix == ".folder"):
        was = "a folder, but a file" if path.is_dir() else "a file, but a folder"
        raise ValueError(f"{path}: found {was} was planned with; run the workflow again (a folder's path may end in /)")
    if path.is_dir():
        _describe(path, sha256, target=target)
    else:
        _bring(path, sha256, target=target, called=str(path), way_out="bring the file again", linked_from=linked_from)


def place(path: Path, sha256: str, *, target: Path) -> None:
    """Give the stages a file or folder that was verified just now, and record its hash.

    Args:
        path: The file or folder.
        sha256: The hash of the file, or of the folder's listing.
        target: As of `fetch_file`.
    """
    if path.is_dir():
        _describe(path, sha256, target=target)
        return
    with replacing(target) as temporary:
        copy_or_link(path, temporary)
    _record(target, sha256)


def verify_placed(target: Path) -> None:
    """Look whether what the stages find is still what was recorded when it was brought.

    Raises:
        ValueError: It is not.
    """
    record = target.with_name(f"{target.name}.sha256")
    recorded = record.read_text().split()[0] if record.exists() else None
    found = sha256_of_file(target)
    if recorded is not None and found != recorded:
        raise ValueError(f"{target}: found sha256 {found}, expected {recorded} ({record.name}); delete both, run again")
    if target.suffix == ".folder":
        _verify_folder(target)


def _verify_folder(target: Path) -> None:
    before = read_json(target)
    now = describe_folder(Path(before["folder"]))
    if now != before:
        changed = f"found {now['files']:,} files, {now['bytes']:,} bytes, listing_sha256 {now['listing_sha256']}"
        expected = f"{before['files']:,}, {before['bytes']:,}, {before['listing_sha256']}"
        raise ValueError(f"{before['folder']}: {changed}, expected {expected}; delete {target} to take it as it is now")


def _describe(folder: Path, sha256: str | None, *, target: Path) -> None:
    """Write a folder's description; refuse another listing than the expected."""
    described = describe_folder(folder)
    if sha256 is not None and described["listing_sha256"] != sha256.lower():
        raise ValueError(
            f"{folder}: found listing_sha256 {described['listing_sha256']}, expected {sha256}; bring the folder again, "
            "or, if the new content is wanted, put its hash into config.yaml"
        )
    write_text(target, folder_text(described))
    _record(target, sha256_of_file(target))


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


def _bring(
    source: Path, sha256: str | None, *, target: Path, called: str, way_out: str, linked_from: int = LINKED_FROM
) -> None:
    """Copy or link `source` to `target` and write its hash beside it; refuse another hash than the expected."""
    with replacing(target) as temporary:
        copy_or_link(source, temporary, linked_from=linked_from)
        found = sha256_of_file(temporary)
        if sha256 is not None and found != sha256.lower():
            raise ValueError(
                f"{called}: found sha256 {found}, expected {sha256}; {way_out}, or, if the new content is wanted, "
                "put its hash into config.yaml"
            )
    _record(target, found)


def _record(target: Path, sha256: str) -> None:
    write_text(target.with_name(f"{target.name}.sha256"), f"{sha256}  {target.name}\n")
