"""Decoded pixels: the same from memory and from the mapped file, decoded once for all processes."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest
import torch
from torch.nn import functional

from image_archives import write_archive
from onestep.archive import digest_of
from onestep.data._archive import prepare
from onestep.data._batches import IndexedZip, OneHot, decoded, opened
from onestep.data.image_zip import ImageZip


@pytest.fixture
def archive(tmp_path):
    pixels = np.random.RandomState(0).randint(256, size=(20, 3, 8, 8)).astype(np.uint8)
    write_archive(tmp_path / "d.zip", zip(pixels, [index % 3 for index in range(20)], strict=True))
    return ImageZip(source=tmp_path / "d.zip")


def test_what_fits_is_kept_in_memory_and_what_does_not_is_mapped(archive, tmp_path):
    cache = tmp_path / "cache"
    expected = torch.from_numpy(archive.read_all()[0])
    assert torch.equal(decoded(archive, cache=cache, in_memory=20 * 192), expected) and not cache.exists()
    assert torch.equal(decoded(archive, cache=None, in_memory=0), expected)
    mapped = decoded(archive, cache=cache, in_memory=20 * 192 - 1)
    assert torch.equal(mapped, expected) and mapped.dtype == torch.uint8
    (path,) = cache.glob("*.npy")
    assert path.name == f"d-{digest_of(archive.source)[:16]}.npy"
    indices = torch.tensor([3, 3, 19, 0])
    assert torch.equal(mapped[indices], expected[indices])


def test_a_second_process_does_not_decode_again(archive, tmp_path, monkeypatch):
    expected = decoded(archive, cache=tmp_path / "cache", in_memory=0)
    monkeypatch.setattr(ImageZip, "__getitem__", None)
    assert torch.equal(decoded(archive, cache=tmp_path / "cache", in_memory=0), expected)


def test_processes_that_come_together_decode_once(archive, tmp_path, caplog):
    caplog.set_level("INFO")
    found = []
    threads = [
        threading.Thread(
            target=lambda: found.append(decoded(ImageZip(source=archive.source), cache=tmp_path / "cache", in_memory=0))
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and all(torch.equal(each, found[0]) for each in found)
    assert caplog.text.count("decoding 20 ") == 1


@pytest.mark.parametrize("damage", ["truncated", "other shape", "text"])
def test_a_damaged_cache_is_made_again(archive, tmp_path, damage):
    expected = decoded(archive, cache=tmp_path / "cache", in_memory=0).clone()
    (path,) = (tmp_path / "cache").glob("*.npy")
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "text":
        path.write_text("hello")
    else:
        np.save(path, np.zeros((19, 3, 8, 8), np.uint8))
    assert torch.equal(decoded(archive, cache=tmp_path / "cache", in_memory=0), expected)


def test_another_archive_of_the_same_name_has_its_own_file(archive, tmp_path):
    decoded(archive, cache=tmp_path / "cache", in_memory=0)
    write_archive(archive.source, ((np.full((3, 8, 8), 9, np.uint8), 0) for _ in range(20)))
    assert (decoded(ImageZip(source=archive.source), cache=tmp_path / "cache", in_memory=0) == 9).all()


def test_writing_to_mapped_pixels_does_not_reach_the_file(archive, tmp_path):
    expected = decoded(archive, cache=tmp_path / "cache", in_memory=0).clone()
    decoded(archive, cache=tmp_path / "cache", in_memory=0).zero_()
    assert torch.equal(decoded(archive, cache=tmp_path / "cache", in_memory=0), expected)


def test_the_digest_is_the_cards_where_there_is_one(archive, tmp_path):
    card = prepare(archive, target=tmp_path / "out" / "e.zip")
    assert digest_of(tmp_path / "out" / "e.zip") == card["sha256"] == digest_of(archive.source)


def test_one_hot_rows_are_those_of_the_whole_table():
    labels = np.array([2, 0, 1, 1, 3])
    table = functional.one_hot(torch.from_numpy(labels), 5).float()
    indices = torch.tensor([4, 0, 0, 2])
    rows = OneHot(labels, classes=5)[indices]
    assert torch.equal(rows, table[indices]) and rows.dtype == torch.float32


@pytest.mark.parametrize("byte", [200, 1_000, -1])
def test_a_byte_of_the_cache_that_has_changed_is_decoded_again(archive, tmp_path, caplog, byte):
    expected = decoded(archive, cache=tmp_path / "cache", in_memory=0).clone()
    (path,) = (tmp_path / "cache").glob("*.npy")
    content = bytearray(path.read_bytes())
    content[byte] ^= 1
    path.write_bytes(content)
    caplog.set_level("INFO")
    assert torch.equal(decoded(archive, cache=tmp_path / "cache", in_memory=0), expected)
    assert caplog.text.count("decoding 20 ") == 1


def test_a_cache_that_was_only_touched_or_has_no_record_is_kept(archive, tmp_path, monkeypatch):
    expected = decoded(archive, cache=tmp_path / "cache", in_memory=0).clone()
    (path,) = (tmp_path / "cache").glob("*.npy")
    monkeypatch.setattr(ImageZip, "__getitem__", None)
    path.touch()
    assert torch.equal(decoded(archive, cache=tmp_path / "cache", in_memory=0), expected)
    path.with_suffix(".json").unlink()  # as of an earlier version
    assert torch.equal(decoded(archive, cache=tmp_path / "cache", in_memory=0), expected)


def test_a_large_archive_is_listed_once(archive, tmp_path, monkeypatch):
    """Later processes need neither the list of its members nor its content."""
    prepare(archive, target=tmp_path / "out" / "e.zip")
    path, cache = tmp_path / "out" / "e.zip", tmp_path / "cache"
    first = opened(path, cache=cache, in_memory=100)
    expected = decoded(first, cache=cache, in_memory=100)
    assert isinstance(first, ImageZip)
    content, times = path.read_bytes(), path.stat()
    path.write_bytes(bytes(len(content)))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    found = opened(path, cache=cache, in_memory=100)
    assert isinstance(found, IndexedZip)
    assert torch.equal(decoded(found, cache=cache, in_memory=100), expected)
    facts = ("source", "channels", "resolution", "classes")
    assert [getattr(found, fact) for fact in facts] == [getattr(first, fact) for fact in facts]
    np.testing.assert_array_equal(found.labels(), first.labels())
    assert found.labels().dtype == np.int64 and len(found) == len(first)


@pytest.mark.parametrize("change", ["archive", "index", "pixels"])
def test_what_was_changed_is_read_and_compared_again(archive, tmp_path, change):
    prepare(archive, target=tmp_path / "out" / "e.zip")
    path, cache = tmp_path / "out" / "e.zip", tmp_path / "cache"
    expected = decoded(opened(path, cache=cache, in_memory=100), cache=cache, in_memory=100).clone()
    if change == "archive":
        content = bytearray(path.read_bytes())
        content[100] ^= 1
        path.write_bytes(content)
        with pytest.raises(ValueError, match="other content than"):
            opened(path, cache=cache, in_memory=100)
        return
    (file,) = cache.glob("*.index.npz" if change == "index" else "*.npy")
    file.write_bytes(file.read_bytes()[:-20])
    found = opened(path, cache=cache, in_memory=100)
    assert isinstance(found, ImageZip if change == "index" else IndexedZip)
    assert torch.equal(decoded(found, cache=cache, in_memory=100), expected)


def test_a_small_archive_leaves_no_index(archive, tmp_path):
    for cache, limit in ((None, 0), (tmp_path / "cache", 2**20)):
        assert isinstance(opened(archive.source, cache=cache, in_memory=limit), ImageZip)
    assert not (tmp_path / "cache").exists()
