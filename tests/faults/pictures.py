"""Pictures, folders and archives of pictures for tests of what may lie in them."""

from __future__ import annotations

import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from forks import Ended, Forks
from PIL import Image

from image_archives import write_zip

SIDE = 16


def picture(
    value: int | None = None, *, seed: int = 0, side: int = SIDE, form: str = "PNG", grey: bool = False
) -> bytes:
    """Return a picture of one value, or of noise."""
    shape = (side, side) if grey else (side, side, 3)
    noise = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(noise if value is None else np.full(shape, value, np.uint8)).save(content, form)
    return content.getvalue()


def deep_png(bits: int, *, colour: int, side: int = SIDE) -> bytes:
    """Return a PNG of this many bits for each number of a pixel, of any colour type of the format."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    line = np.random.default_rng(bits).integers(0, 256, side * channels * bits // 8, dtype=np.uint8).tobytes()
    header = struct.pack(">IIBBBBB", side, side, bits, colour, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress((b"\0" + line) * side))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


def classes(**counts: int) -> dict[str, bytes]:
    """Return noise in class folders, this many pictures in each."""
    return {f"{name}/{i}.png": picture(seed=i) for name, count in counts.items() for i in range(count)}


def edm_zip(path: Path, *, labels: Any = None, count: int = 4, grey: bool = False, **members: bytes) -> Path:
    """Write an archive in EDM's format; `labels` is the content of dataset.json, `members` are further files."""
    files = {f"00000/img{i:08d}.png": picture(seed=i, grey=grey) for i in range(count)}
    if labels is not None:
        files["dataset.json"] = json.dumps({"labels": labels}).encode()
    return write_zip(path, files | members)


def prepare(forks: Forks, source: Path, output: Path, *, labels: str = "none", share: float = 0.0) -> Ended:
    """Run `prepare` on pictures."""
    block = {"name": "images", "resolution": SIDE, "transform": "scale", "labels": labels, "unreadable_share": share}
    words = ["prepare", "--dataset", json.dumps(block), "--source", source, "--output", output, "--workers", 1]
    return forks.onestep(*words, folder=output.parent)


def card(archive: Path) -> dict[str, Any]:
    """Return the card of a prepared archive."""
    return json.loads(archive.with_suffix(".json").read_text())


def is_refused(ended: Ended, *names: str) -> bool:
    """Return whether a verb refused in one line that has these names."""
    lines = [line for line in ended.text.splitlines() if line.startswith("onestep ")]
    told = len(lines) == 1 and all(name in lines[0] for name in names)
    return ended.code in (1, 2) and "Traceback" not in ended.text and told
