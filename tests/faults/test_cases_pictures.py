"""What lies in folders of pictures: what is a picture, which classes there are, and what is identified."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from forks import Forks
from pictures import card, classes, deep_png, is_refused, picture, prepare
from PIL import Image

from image_archives import write_folder, write_zip

NAMES = {"cat": 3, "dog": 3}


def _values(archive: Path) -> list[int]:
    """Return the first number of each picture of an archive."""
    with zipfile.ZipFile(archive) as opened:
        members = [opened.read(name) for name in opened.namelist() if name.endswith(".png")]
    return sorted(int(np.array(Image.open(io.BytesIO(content))).flat[0]) for content in members)


def _deleted(folder: Path) -> None:
    (folder / "a" / "000.png").unlink()


def _changed(folder: Path) -> None:
    (folder / "a" / "000.png").write_bytes(picture(77))


def _added(folder: Path) -> None:
    (folder / "a" / "more.png").write_bytes(picture(78))


def _renamed(folder: Path) -> None:
    (folder / "a" / "000.png").rename(folder / "b" / "000.png")


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (_deleted, list(range(1, 70))),
        (_changed, [*range(1, 70), 77]),
        (_added, [*range(70), 78]),
        (_renamed, list(range(70))),
    ],
)
def test_a_second_attempt_holds_what_is_in_the_folder_now(forks: Forks, tmp_path: Path, edit, expected) -> None:
    folder = write_folder(tmp_path / "pets", {f"a/{i:03d}.png": picture(i) for i in range(69)} | {"b/x.png": b"x"})
    (folder / "b" / "y.png").write_bytes(picture(69))
    assert is_refused(prepare(forks, folder, tmp_path / "o.zip", labels="folders"), "x.png")
    (folder / "b" / "x.png").unlink()
    edit(folder)
    ended = prepare(forks, folder, tmp_path / "o.zip", labels="folders")
    assert ended.code == 0, ended
    assert _values(tmp_path / "o.zip") == expected
    moved = edit is _renamed
    count = len(expected) - 1 - moved
    assert card(tmp_path / "o.zip")["images_per_class"] == [count, 1 + moved]


@pytest.mark.parametrize("name", ["x.png", "a/x.png"])
def test_what_is_mended_is_read_again(forks: Forks, tmp_path: Path, name: str) -> None:
    folder = write_folder(tmp_path / "pets", {"a/y.png": picture(1), name: b"no picture"})
    assert is_refused(prepare(forks, folder, tmp_path / "o.zip"), "x.png")
    (folder / name).write_bytes(picture(9))
    assert prepare(forks, folder, tmp_path / "o.zip").code == 0
    assert _values(tmp_path / "o.zip") == [1, 9]


@pytest.mark.parametrize("empty", ["dog", "bird", "zebra"])
def test_a_class_folder_without_pictures_keeps_its_number_or_is_named(forks: Forks, tmp_path: Path, empty: str) -> None:
    folder = write_folder(tmp_path / "pets", classes(cat=2, cow=2, wolf=2))
    (folder / empty).mkdir()
    ended = prepare(forks, folder, tmp_path / "o.zip", labels="folders")
    names = card(tmp_path / "o.zip")["class_names"] if ended.code == 0 else []
    assert is_refused(ended, empty) or names == sorted(["cat", "cow", "wolf", empty]) or empty in ended.text


@pytest.mark.parametrize("hidden", [".ipynb_checkpoints", ".thumbnails", ".cache", "__MACOSX", "cat/.hidden"])
def test_hidden_folders_are_no_classes(forks: Forks, tmp_path: Path, hidden: str) -> None:
    folder = write_folder(tmp_path / "pets", classes(**NAMES) | {f"{hidden}/0.png": picture(5)})
    ended = prepare(forks, folder, tmp_path / "o.zip", labels="folders")
    assert ended.code == 0, ended
    found = card(tmp_path / "o.zip")
    assert (found["class_names"], found["images"]) == (["cat", "dog"], 6)


@pytest.mark.parametrize(
    "entries",
    [
        {"__MACOSX/pets/cat/._0.png": b"\0\5\x16\7" + bytes(80)},
        {"pets/cat/._0.png": b"\0\5\x16\7" + bytes(80)},
        {"pets/bird/0.png": b"no picture"},
        {"__MACOSX/._pets": b"\0\5\x16\7", "pets/.DS_Store": b"\0\0\0\1Bud1"},
    ],
    ids=["resource forks", "forks in a class", "a class of refused entries", "files of a Mac"],
)
def test_entries_that_are_not_taken_make_no_class(forks: Forks, tmp_path: Path, entries: dict[str, bytes]) -> None:
    members = {f"pets/{name}": content for name, content in classes(cat=10, dog=10).items()}
    ended = prepare(
        forks, write_zip(tmp_path / "p.zip", members | entries), tmp_path / "o.zip", labels="folders", share=0.2
    )
    names = card(tmp_path / "o.zip")["class_names"] if ended.code == 0 else None
    assert names == ["cat", "dog"] or is_refused(ended, "p.zip")


@pytest.mark.parametrize(
    ("ending", "form"), [("jfif", "JPEG"), ("jp2", "JPEG2000"), ("tga", "TGA"), ("dib", "DIB"), ("pbm", "PPM")]
)
def test_pictures_of_other_endings_are_taken_or_counted(forks: Forks, tmp_path: Path, ending: str, form: str) -> None:
    files = classes(cat=3) | {f"cat/x.{ending}": picture(form=form)}
    ended = prepare(forks, write_folder(tmp_path / "pets", files), tmp_path / "o.zip")
    found = card(tmp_path / "o.zip") if ended.code == 0 else {}
    counted = f"x.{ending}" in ended.text or ending in ended.text or ending in str(found)
    assert found.get("images") == 4 or counted


@pytest.mark.parametrize(("bits", "colour"), [(16, 0), (16, 2), (16, 4), (16, 6)])
def test_a_picture_of_16_bits_is_refused_by_name(forks: Forks, tmp_path: Path, bits: int, colour: int) -> None:
    files = classes(cat=3) | {"cat/deep.png": deep_png(bits, colour=colour)}
    ended = prepare(forks, write_folder(tmp_path / "pets", files), tmp_path / "o.zip")
    assert is_refused(ended) and "deep.png" in ended.text


@pytest.mark.parametrize("name", [b"caf\xe9", b"\xff\xfe", b"a\x80b"])
def test_a_name_that_is_no_utf_8_is_taken_or_refused_before_anything_is_written(
    forks: Forks, tmp_path: Path, name: bytes
) -> None:
    folder = write_folder(tmp_path / "pets", classes(tea=2))
    odd = os.fsencode(folder) + b"/" + name
    os.mkdir(odd)
    for number in (b"0", b"1"):
        with open(odd + b"/" + number + b".png", "wb") as file:
            file.write(picture())
    (tmp_path / "o").mkdir()
    ended = prepare(forks, folder, tmp_path / "o" / "o.zip", labels="folders")
    assert ended.code == 0 or (is_refused(ended, "pets") and not list((tmp_path / "o").iterdir()))
    assert "surrogates" not in ended.text


@pytest.mark.parametrize("name", ["cat\\0.png", "cat\\dog\\1.png", "C:\\pets\\2.png"])
def test_names_with_backslashes_are_refused_by_name(forks: Forks, tmp_path: Path, name: str) -> None:
    members = {"pets/dog/0.png": picture()}
    path = write_zip(tmp_path / "p.zip", members)
    with zipfile.ZipFile(path, "a") as archive:
        info = zipfile.ZipInfo("x")
        info.filename = name  # what zip programs of Windows write
        archive.writestr(info, picture(1))
    ended = prepare(forks, path, tmp_path / "o.zip", labels="folders")
    found = card(tmp_path / "o.zip") if ended.code == 0 else {}
    assert is_refused(ended, "p.zip") or found.get("images") == 2
