"""Plain archives are read by a quicker way to the same names, labels and pixels; others are left to the general way."""

from __future__ import annotations

import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from image_archives import write_archive
from onestep.data._zip_members import plain_members, plain_png
from onestep.data.image_zip import ImageZip

_COUNT = 40


def _pictures(channels=3, side=8):
    random = np.random.RandomState(channels)
    # A gradient is encoded with other filters than noise.
    smooth = np.add.outer(np.arange(side), np.arange(side))[None].repeat(channels, axis=0).astype(np.uint8)
    return [smooth + random.randint(256, size=(channels, side, side)).astype(np.uint8) * (n % 2) for n in range(_COUNT)]


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "d.zip"
    write_archive(path, zip(_pictures(), [n % 3 for n in range(_COUNT)], strict=True))
    return path


@pytest.mark.parametrize("channels", [1, 3])
def test_both_ways_lead_to_the_same(tmp_path, monkeypatch, channels):
    path = tmp_path / "d.zip"
    write_archive(path, zip(_pictures(channels), [n % 3 for n in range(_COUNT)], strict=True))
    assert plain_members(path) is not None
    plain = ImageZip(source=path)
    monkeypatch.setattr("onestep.data.image_zip.plain_members", lambda _: None)
    general = ImageZip(source=path)
    for one, other in zip(plain.read_all(), general.read_all(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert (plain.classes, plain.channels, plain.resolution) == (general.classes, general.channels, general.resolution)
    np.testing.assert_array_equal(plain.read_all()[0], _pictures(channels))


def _rewritten(path, change):
    """Write the members of an archive again, each as `change(name, content)` has it: [(name or header, content)]."""
    with zipfile.ZipFile(path) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members:
            for header, new in change(name, content):
                archive.writestr(header, new)


def _link(name):
    header = zipfile.ZipInfo(name)
    header.external_attr = 0o120777 << 16
    return header


@pytest.mark.parametrize(
    "change",
    [
        lambda name, content: [(name.replace("img", ".img"), content)],
        lambda name, content: [(f"__MACOSX/{name}", content)],
        lambda name, content: [(f"../{name}", content)],
        lambda name, content: [(name.replace("/", "//"), content)],
        lambda name, content: [(name.replace(".png", ".jpg"), content)],
        lambda name, content: [(name.replace("img", "\xe4"), content)],
        lambda name, content: [(_link(name), content)],
        lambda name, content: [(name, content), ("notes.txt", b"")] if name == "dataset.json" else [(name, content)],
        lambda name, content: [(f"/{name}", content)],
    ],
    ids=["hidden", "system", "out", "slashes", "other kind", "letters", "link", "other file", "absolute"],
)
def test_what_is_not_plain_is_left_to_the_general_way(archive, change):
    _rewritten(archive, change)
    assert plain_members(archive) is None


def test_packed_members_comments_and_what_precedes_an_archive_are_not_plain(archive):
    content = archive.read_bytes()
    archive.write_bytes(b"#!/bin/sh\n" + content)
    assert plain_members(archive) is None
    archive.write_bytes(content)
    with zipfile.ZipFile(archive, "a") as opened:
        opened.comment = b"x"
    assert plain_members(archive) is None
    archive.write_bytes(content)
    with zipfile.ZipFile(archive, "a", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("00000/img99999999.png", bytes(1000))
    assert plain_members(archive) is None


def test_names_of_many_lengths_and_in_any_order_are_sorted_as_texts(tmp_path):
    path, names = tmp_path / "d.zip", ["b/10.png", "b/2.png", "a-b/1.png", "a/1.png", "c.png"]
    with zipfile.ZipFile(path, "w") as opened:
        for name in names:
            opened.writestr(name, name)
    found = plain_members(path)
    assert [name.decode() for name in found.names] == sorted(names)
    assert [found.read(number) for number in range(5)] == [name.encode() for name in sorted(names)]
    assert not found.has_labels


def test_far_and_many_members_are_found(archive, monkeypatch):
    """The fields of 64 bits, which zipfile writes from 2 GiB or 65,536 members on."""
    expected = ImageZip(source=archive).read_all()
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 2_000)
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 10)
    _rewritten(archive, lambda name, content: [(name, content)])
    found = plain_members(archive)
    assert found is not None and len(found.names) == _COUNT
    assert len(json.loads(found.labels(most=2**20))["labels"]) == _COUNT
    for one, other in zip(ImageZip(source=archive).read_all(), expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("place", [0, 31, 60, 300])
def test_a_damaged_member_is_an_error_of_its_name(archive, place):
    with zipfile.ZipFile(archive) as opened:
        member = opened.infolist()[7]
    content = bytearray(archive.read_bytes())
    content[member.header_offset + place] ^= 1
    archive.write_bytes(content)
    with pytest.raises(ValueError, match=member.filename):
        ImageZip(source=archive).read_all()


def test_every_cut_of_an_archive_is_left_to_the_general_way(archive):
    content = archive.read_bytes()
    for length in range(0, len(content), 97):
        archive.write_bytes(content[:length])
        assert plain_members(archive) is None


def _png(mode, **options):
    file = io.BytesIO()
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).convert(mode).save(file, "PNG", **options)
    return file.getvalue()


def test_only_plain_pictures_are_decoded_without_pillows_reader():
    for mode in ("RGB", "L"):
        for options in ({}, {"compress_level": 0}, {"optimize": True}):
            content = _png(mode, **options)
            with Image.open(io.BytesIO(content)) as picture:
                np.testing.assert_array_equal(plain_png(content), np.array(picture))
    for mode in ("RGBA", "P", "1", "LA"):
        assert plain_png(_png(mode)) is None
    assert plain_png(_png("RGB", transparency=(0, 1, 2))) is None
    assert plain_png(_png("RGB") + b"x") is None


def test_any_damage_to_a_picture_is_left_to_pillow():
    content = _png("RGB")
    assert all(plain_png(content[:length]) is None for length in range(len(content)))
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1
        assert plain_png(bytes(damaged)) is None, place


def test_names_of_ever_other_lengths_are_left_to_the_general_way(tmp_path):
    path = tmp_path / "d.zip"
    with zipfile.ZipFile(path, "w") as opened:
        for number in range(1_200):
            opened.writestr(f"{'a' * (1 + number % 2)}{number:04d}.png", b"")
    assert plain_members(path) is None
