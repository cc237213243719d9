"""Arrays on disk with a word about where they come from: .npz files that hold no pickles."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from onestep.files import canonical_json, read_json, replacing, sha256_of_file


class Arrays(NamedTuple):
    """What an archive holds: arrays by name, and JSON-able facts about where they come from."""

    arrays: dict[str, np.ndarray]
    about: dict[str, Any]


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], *, about: Mapping[str, Any]) -> None:
    """Write an .npz atomically; equal content gives equal bytes."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, allow_pickle=False, about=np.array(canonical_json(about)), **dict(arrays))


def read_arrays(path: Path) -> Arrays:
    """Read what `write_arrays` wrote; ValueError for another file, with the way out."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = dict(archive)
        about = json.loads(arrays.pop("about").item())
    except (zipfile.BadZipFile, ValueError, KeyError, EOFError) as error:
        fix = "delete it and run again to rebuild it"
        raise ValueError(f"{path}: not an archive of this pipeline ({error}); {fix}") from error
    return Arrays(arrays, about)


def published_arrays(path: Path, names: Iterable[str]) -> dict[str, np.ndarray] | None:
    """Return those arrays of `names` that an .npz of another program contains; None if this pipeline wrote the file.

    ValueError if the file is no .npz, is damaged, or an entry of `names` is not a plain array.
    """
    try:
        with open(path, "rb") as file:
            if not zipfile.is_zipfile(file):
                raise ValueError("it is no zip archive, or cut off")
        with np.load(path, allow_pickle=False) as archive:
            return None if "about" in archive else {name: archive[name] for name in names if name in archive}
    except (zipfile.BadZipFile, ValueError, EOFError) as error:
        raise ValueError(f"{path}: not a whole .npz of plain arrays ({error}); fetch it again") from error


def digest_of(archive: Path) -> str:
    """Return the SHA-256 of a dataset archive, read from its card where there is one."""
    card = archive.with_suffix(".json")
    return read_json(card)["sha256"] if card.exists() else sha256_of_file(archive)
