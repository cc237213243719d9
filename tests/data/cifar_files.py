"""CIFAR-10's container, made of any pictures: pickles as Python 2 wrote them, in a tar.gz."""

from __future__ import annotations

import io
import struct
import tarfile
from pathlib import Path

import numpy as np


def python2_text(content: bytes) -> bytes:
    """Return opcodes for a str of Python 2."""
    head = b"U" + bytes([len(content)]) if len(content) < 256 else b"T" + struct.pack("<i", len(content))
    return head + content


def _number(number: int) -> bytes:
    return b"J" + struct.pack("<i", number)


def array(rows: np.ndarray) -> bytes:
    """Return opcodes for an array of uint8 [N, D], as numpy under Python 2 reduced it."""
    empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + python2_text(b"b") + b"\x87R"
    dtype = b"cnumpy\ndtype\n" + python2_text(b"u1") + b"K\x00K\x01\x87R"
    dtype += b"(K\x03" + python2_text(b"|") + b"NNN" + _number(-1) * 2 + b"K\x00tb"
    shape = _number(rows.shape[0]) + _number(rows.shape[1]) + b"\x86"
    return empty + b"(K\x01" + shape + dtype + b"\x89" + python2_text(rows.tobytes()) + b"tb"


def batch(pixels: np.ndarray, labels: list[int]) -> bytes:
    """Return a batch: a dict with texts as keys, the list of labels memoised, as cPickle does."""
    names = b"".join(python2_text(b"thing_s_%06d.png" % index) for index in range(len(labels)))
    entries = python2_text(b"batch_label") + python2_text(b"training batch 1 of 5")
    entries += python2_text(b"labels") + b"]q\x02(" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    entries += python2_text(b"data") + array(pixels.reshape(len(labels), -1))
    entries += python2_text(b"filenames") + b"](" + names + b"e"
    return b"\x80\x02}q\x01(" + entries + b"u."


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    """Write a tar.gz with these members."""
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def pictures(count: int, *, seed: int = 0) -> tuple[np.ndarray, list[int]]:
    """Return coarse random pictures, uint8 [N, 3, 32, 32], and their labels."""
    random = np.random.RandomState(seed)
    coarse = random.randint(256, size=(count, 3, 8, 8)).astype(np.uint8)
    return coarse.repeat(4, axis=2).repeat(4, axis=3), random.randint(10, size=count).tolist()


def write_cifar(path: Path, *, each: int) -> tuple[np.ndarray, list[int]]:
    """Write an archive of five training batches and a test batch; return the training pictures and labels."""
    batches = [pictures(each, seed=number) for number in range(1, 6)]
    members = {f"data_batch_{number}": batch(*batches[number - 1]) for number in (2, 1, 3, 4, 5)}
    write_tar(path, {"batches.meta": b"\x80\x02}.", **members, "test_batch": batch(*pictures(3)), "readme.html": b"x"})
    return np.concatenate([pixels for pixels, _ in batches]), [label for _, labels in batches for label in labels]
