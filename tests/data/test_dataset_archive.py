"""Dataset archives: EDM's layout, the same bytes each time, read back as written."""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from image_archives import GivenImages, write_archive
from onestep.data._archive import prepare
from onestep.data.image_zip import ImageZip
from onestep.files import read_json, sealed, sha256_of_file


def _pixels(count: int, *, channels: int = 3, resolution: int = 8, seed: int = 0) -> np.ndarray:
    shape = (count, channels, resolution, resolution)
    return np.random.RandomState(seed).randint(256, size=shape).astype(np.uint8)


def _png(pixels: np.ndarray, mode: str | None = None) -> bytes:
    content = io.BytesIO()
    picture = Image.fromarray(pixels)
    (picture.convert(mode) if mode else picture).save(content, format="png")
    return content.getvalue()


@pytest.fixture
def build(tmp_path):
    """Return a function that makes an archive of any members."""

    def build(members: dict[str, bytes]):
        path = tmp_path / "hand.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        return path

    return build


def _shape_of_stored_png(size: int) -> tuple[int, int]:
    """Return the channels and the side of the square whose uncompressed PNG has this many bytes."""
    for resolution in (2**exponent for exponent in range(11)):
        for channels, shape in ((1, (resolution, resolution)), (3, (resolution, resolution, 3))):
            content = io.BytesIO()
            Image.fromarray(np.zeros(shape, np.uint8)).save(content, format="png", compress_level=0)
            if len(content.getvalue()) == size:
                return channels, resolution
    pytest.fail(f"no grey or RGB square up to 1024 pixels is an uncompressed PNG of {size} bytes")


@pytest.mark.golden
def test_layout_is_the_references(golden, tmp_path):
    recorded = golden.json("dataset_zip_layout.json")
    labels = recorded["dataset_json"]["labels"]
    classes = [label for _, label in labels] if labels else [None] * len(recorded["png_sizes"])
    (size,) = set(recorded["png_sizes"])
    channels, resolution = _shape_of_stored_png(size)
    write_archive(
        tmp_path / "a.zip",
        zip(_pixels(len(classes), channels=channels, resolution=resolution), classes, strict=True),
    )
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        members = archive.infolist()
        assert [member.filename for member in members] == recorded["namelist"]
        assert [member.compress_type for member in members] == recorded["compress_type"]
        assert [member.file_size for member in members[:-1]] == recorded["png_sizes"]
        assert json.loads(archive.read("dataset.json")) == recorded["dataset_json"]


@pytest.mark.parametrize("channels", [1, 3])
def test_reads_back_what_was_written(tmp_path, channels):
    pixels = _pixels(7, channels=channels)
    write_archive(tmp_path / "a.zip", zip(torch.from_numpy(pixels), [3, 0, 1, 1, 2, 0, 3], strict=True))
    archive = ImageZip(source=tmp_path / "a.zip")
    assert (len(archive), archive.channels, archive.resolution, archive.classes) == (7, channels, 8, 4)
    found, labels = archive.read_all()
    assert found.dtype == np.uint8 and labels.dtype == np.int64
    assert np.array_equal(found, pixels)
    assert labels.tolist() == [3, 0, 1, 1, 2, 0, 3]
    one, label = archive[4]
    assert np.array_equal(one, pixels[4]) and label == 2


def test_the_same_pictures_give_the_same_bytes(tmp_path, monkeypatch):
    pictures = [(torch.from_numpy(p), i % 3) for i, p in enumerate(_pixels(5))]
    write_archive(tmp_path / "a.zip", pictures)
    monkeypatch.setattr("time.time", lambda: 2e9)
    monkeypatch.setattr("time.localtime", lambda *_: (2033, 5, 18, 3, 33, 20, 2, 138, 0))
    old = os.umask(0o077)
    try:
        write_archive(tmp_path / "b.zip", ((pixels.numpy(), np.int64(label)) for pixels, label in pictures))
    finally:
        os.umask(old)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_one_missing_label_makes_all_missing(tmp_path):
    write_archive(tmp_path / "a.zip", zip(_pixels(3), [0, None, 1], strict=True))
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.read("dataset.json") == b'{"labels": null}'
    archive = ImageZip(source=tmp_path / "a.zip")
    assert archive.classes == 0
    assert [label for _, label in archive] == [0, 0, 0]


class _Failing(GivenImages):
    def __getitem__(self, index):
        raise RuntimeError("the disk of the source failed")


def test_a_failed_preparation_leaves_no_archive(tmp_path):
    with pytest.raises(RuntimeError, match="the disk"):
        prepare(_Failing([(_pixels(1)[0], 0)]), target=tmp_path / "a.zip")
    assert not any(path.is_file() for path in tmp_path.glob("a*"))


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        ([], "a.zip: got no images"),
        ([np.zeros((3, 8, 8), np.float32)], r"image 0: found float32 \[3, 8, 8\], expected uint8"),
        ([np.zeros((8, 8, 3), np.uint8)], r"found uint8 \[8, 8, 3\], expected uint8 \[C, H, W\]"),
        ([np.zeros((8, 8), np.uint8)], r"found uint8 \[8, 8\], expected uint8 \[C, H, W\]"),
        ([np.zeros((3, 8, 4), np.uint8)], "expected a square whose side is a power of two"),
        ([np.zeros((3, 12, 12), np.uint8)], "expected a square whose side is a power of two"),
        ([np.zeros((1, 8, 8), np.uint8), np.zeros((3, 8, 8), np.uint8)], r"image 1: found .*\[3, 8, 8\].*\[1, 8, 8\]"),
    ],
)
def test_images_that_do_not_fit_are_refused(tmp_path, pictures, message):
    with pytest.raises(ValueError, match=message):
        write_archive(tmp_path / "a.zip", [(picture, 0) for picture in pictures])
    assert not any(path.is_file() for path in tmp_path.glob("a*"))


def test_members_are_sorted_and_other_files_ignored(build):
    a, b = _pixels(2, channels=1)[:, 0]
    source = build({"z/2.png": _png(b), "notes.txt": b"hello", "a/1.PNG": _png(a)})
    archive = ImageZip(source=source)
    assert np.array_equal(archive.read_all()[0][:, 0], np.stack([a, b]))
    assert archive.classes == 0


GREY = _pixels(1, channels=1)[0, 0]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"notes.txt": b"x"}, "its 1 members"),
        ({"a.png": b"not a png"}, "cannot read a.png"),
        ({"a.png": _png(GREY)[:-30]}, "cannot read a.png"),
        ({"a.png": _png(GREY, "RGBA")}, "a.png .*colour mode is RGBA, expected L"),
        ({"a.png": _png(GREY, "P")}, "a.png .*colour mode is P, expected L"),
        ({"a.png": _png(GREY[:4])}, r"a.png has the shape \[C, H, W\] = \[1, 4, 8\], expected the square \[1, 4, 4\]"),
        ({"a.png": _png(GREY[:6, :6])}, r"\[1, 6, 6\], expected a side that is a power of two"),
        ({"a.png": _png(GREY), "dataset.json": b"{"}, "dataset.json is not"),
        ({"a.png": _png(GREY), "dataset.json": b"[]"}, "dataset.json is not"),
        ({"a.png": _png(GREY), "dataset.json": b'{"labels": [1]}'}, "dataset.json is not"),
        ({"a.png": _png(GREY), "dataset.json": b'{"labels": []}'}, "gives a.png the label None"),
        ({"a.png": _png(GREY), "dataset.json": b'{"labels": [["a.png", -1]]}'}, "gives a.png the label -1"),
        ({"a.png": _png(GREY), "dataset.json": b'{"labels": [["a.png", 1.5]]}'}, "gives a.png the label 1.5"),
        ({"a.png": _png(GREY), "dataset.json": b'{"labels": [["a.png", [0, 1]]]}'}, r"the label \[0, 1\]"),
    ],
)
def test_archives_in_another_format_are_refused(build, members, message):
    with pytest.raises(ValueError, match=f"hand.zip: .*{message}"):
        ImageZip(source=build(members))


@pytest.mark.parametrize("other", [_png(GREY[:4, :4]), _png(GREY, "RGB"), b"broken"])
def test_a_picture_unlike_the_first_is_named_when_it_is_read(build, other):
    archive = ImageZip(source=build({"a.png": _png(GREY), "b.png": other}))
    for read in (archive.read_all, lambda: archive[1]):
        with pytest.raises(ValueError, match=r"b\.png"):
            read()


def test_a_flipped_byte_is_noticed(tmp_path):
    path = tmp_path / "a.zip"
    write_archive(path, zip(_pixels(2), [0, 1], strict=True))
    content = bytearray(path.read_bytes())
    content[len(content) // 4] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ValueError, match="cannot read 00000/img00000000.png"):
        ImageZip(source=path)


def test_what_is_no_zip_is_refused(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"PK but no more")
    os.mkfifo(tmp_path / "pipe.zip")
    (tmp_path / "folder.zip").mkdir()
    for name in ("a.zip", "absent.zip", "pipe.zip", "folder.zip"):
        with pytest.raises(ValueError, match=f"{name}: "):
            ImageZip(source=tmp_path / name)


def test_an_archive_goes_to_other_processes(tmp_path):
    pixels = _pixels(20)
    write_archive(tmp_path / "a.zip", zip(pixels, [0] * 20, strict=True))
    archive = ImageZip(source=tmp_path / "a.zip")
    spawned = pickle.loads(pickle.dumps(archive))
    assert np.array_equal(spawned.read_all()[0], pixels)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_forked_processes_read_side_by_side(tmp_path):
    pixels = _pixels(20)
    write_archive(tmp_path / "a.zip", zip(pixels, [0] * 20, strict=True))
    archive = ImageZip(source=tmp_path / "a.zip")
    children = []
    for _ in range(2):
        child = os.fork()
        if child == 0:
            same = False
            try:
                same = all(np.array_equal(archive.read_all()[0], pixels) for _ in range(20))
            finally:
                os._exit(0 if same else 1)
        children.append(child)
    assert all(np.array_equal(archive.read_all()[0], pixels) for _ in range(20))
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]


def test_preparing_writes_the_archive_and_its_card(tmp_path):
    pixels = _pixels(6, channels=3)
    labels = [2, 0, 2, 2, 1, 0]
    write_archive(tmp_path / "source.zip", zip(pixels, labels, strict=True))
    target = tmp_path / "data" / "set.zip"
    card = prepare(ImageZip(source=tmp_path / "source.zip"), target=target)
    assert sealed(card) == read_json(tmp_path / "data" / "set.json")
    assert target.read_bytes() == (tmp_path / "source.zip").read_bytes()
    assert card["sha256"] == sha256_of_file(target)
    assert (card["images"], card["resolution"], card["channels"], card["classes"]) == (6, 8, 3, 3)
    assert card["images_per_class"] == [2, 1, 3]
    for channel in range(3):
        assert math.isclose(card["pixel_mean"][channel], pixels[:, channel].mean(), rel_tol=1e-12)
        assert math.isclose(card["pixel_std"][channel], pixels[:, channel].std(), rel_tol=1e-12)


def test_an_unlabelled_dataset_stays_unlabelled(tmp_path):
    write_archive(tmp_path / "source.zip", ((pixels, None) for pixels in _pixels(2)))
    card = prepare(ImageZip(source=tmp_path / "source.zip"), target=tmp_path / "set.zip")
    assert (card["classes"], card["images_per_class"]) == (0, [])
