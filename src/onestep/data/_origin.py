"""What a prepared dataset follows from, so that work is only taken up where all of it is the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import PIL


def origin_of(source: Path, *, options: Mapping[str, Any], code: str) -> dict[str, Any]:
    """Return the origin of a dataset as JSON.

    Args:
        source: What it is read from. Told by size and date: a digest of 150 GB would take longer than the work saved.
        options: Its reader and the options of it.
        code: Fingerprint of the code that prepares it.
    """
    known = source.stat()
    return {
        # What is read does not depend on how much unreadable is too much.
        "options": {key: value for key, value in options.items() if key != "unreadable_share"},
        "source": [str(source.resolve()), known.st_size, known.st_mtime_ns],
        "code": code,
        "pillow": PIL.__version__,
    }
