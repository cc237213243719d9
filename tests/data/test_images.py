"""Pictures from folders, zips and tars: the same whatever holds them; hostile ones are refused, each by name."""

from __future__ import annotations

import io
import json
import os
import struct
import tarfile
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onestep.data import UnreadableImage, _sources
from onestep.data._archive import prepare
from onestep.data.image_zip import ImageZip
from onestep.data.images import Images
from onestep.files import read_json, sealed, sha256_of_file


def _pixels(seed: int, shape=(12, 16, 3)) -> np.ndarray:
    return np.random.RandomState(seed).randint(256, size=shape).astype(np.uint8)


def _file(pixels: np.ndarray, form: str = "png", *, mode: str | None = None, **options) -> bytes:
    content = io.BytesIO()
    picture = Image.fromarray(pixels)
    (picture.convert(mode) if mode else picture).save(content, format=form, **options)
    return content.getvalue()


TREE = {
    "n02/b.JPEG": _file(_pixels(0), "jpeg"),
    "n02/a.png": _file(_pixels(1)),
    "n01/z.png": _file(_pixels(2, (20, 9))),
    "n01-more/y.webp": _file(_pixels(3), "webp", lossless=True),
    "n02/deep/c.bmp": _file(_pixels(4), "bmp"),
    "README.txt": b"no picture",
}
ORDER = ["n01/z.png", "n01-more/y.webp", "n02/a.png", "n02/b.JPEG", "n02/deep/c.bmp"]


def _folder(path: Path, members=TREE, *, below: str = "") -> Path:
    for name, content in members.items():
        file = path / below / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return path


def _zip(path: Path, members=TREE, *, below: str = "") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(below + name, content)
    return path


def _tar_bytes(members, *, below: str = "", mode: str = "w:") -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode=mode) as archive:
        for name, each in members.items():
            member = tarfile.TarInfo(below + name)
            member.size = len(each)
            archive.addfile(member, io.BytesIO(each))
    return content.getvalue()


def _tar(path: Path, members=TREE, *, below: str = "", mode: str = "w:") -> Path:
    path.write_bytes(_tar_bytes(members, below=below, mode=mode))
    return path


def _tar_of_tars(path: Path) -> Path:
    """Write a tar with a tar for each class, as ILSVRC2012_img_train.tar is."""
    classes: dict[str, dict[str, bytes]] = {}
    for name, content in TREE.items():
        top, _, rest = name.partition("/")
        classes.setdefault(top, {})[rest or top] = content
    return _tar(path, {f"{top}.tar": _tar_bytes(members) for top, members in classes.items()})


def _named_folder(path: Path) -> Path:
    folder = _folder(path.parent / "tree")
    path.write_text(json.dumps({"folder": str(folder), "files": 6, "bytes": 1, "listing_sha256": "0" * 64}))
    return path


def _images(source, **options) -> Images:
    return Images(**{"source": source, "resolution": 8, "transform": "center_crop", "labels": "folders"} | options)


def _names(dataset: Images) -> list[str]:
    return [entry.name for entry in dataset._entries]


MAKERS = {
    "folder": lambda path: _folder(path / "tree"),
    "folder below a root of its own": lambda path: _folder(path / "tree", below="ILSVRC/Data/train"),
    "named folder": lambda path: _named_folder(path / "tree.folder"),
    "zip": lambda path: _zip(path / "a.zip"),
    "tar": lambda path: _tar(path / "a.tar"),
    "tar with dots": lambda path: _tar(path / "a.tar", below="./"),
    "gz": lambda path: _tar(path / "a.tar.gz", mode="w:gz"),
    "xz": lambda path: _tar(path / "a.txz", mode="w:xz"),
    "bz2": lambda path: _tar(path / "a.tbz", mode="w:bz2"),
    "tar of tars": lambda path: _tar_of_tars(path / "a.tar"),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_the_same_pictures_and_labels_whatever_holds_them(tmp_path, kind):
    expected = _images(_folder(tmp_path / "expected"))
    dataset = _images(MAKERS[kind](tmp_path))
    assert dataset.class_names == ("n01", "n01-more", "n02") and dataset.classes == 3
    assert [name[-len(wanted) :] for name, wanted in zip(_names(dataset), ORDER, strict=True)] == ORDER
    for index, label in enumerate([0, 1, 2, 2, 2]):
        pixels, found = dataset[index]
        assert found == label and pixels.shape == (3, 8, 8)
        assert np.array_equal(pixels, expected[index][0])


def test_a_root_chooses_a_part_of_the_archive(tmp_path):
    both = {f"train/{name}": content for name, content in TREE.items()} | {"test/n09/q.png": TREE["n02/a.png"]}
    source = _zip(tmp_path / "a.zip", both)
    assert _images(source, root="train").class_names == ("n01", "n01-more", "n02")
    assert _images(source, root="/test/", labels="none").classes == 0 and len(_images(source, labels="none")) == 6
    assert _images(source).class_names == ("test", "train")
    with pytest.raises(ValueError, match=r"a\.zip: .*'val'.*test, train"):
        _images(source, root="val")


@pytest.mark.golden
@pytest.mark.parametrize("transform", ["scale", "center_crop"])
def test_pictures_pass_the_references_transforms(golden, tmp_path, transform):
    recorded = golden.load("dataset_transforms.npz")
    side = {int(key.rsplit("x", 1)[1]) for key in recorded if "/" in key}.pop()
    for picture, pixels in ((key, value) for key, value in recorded.items() if "/" not in key):
        key = f"{picture}/{transform}_{side}x{side}"
        if key in recorded:
            source = _zip(tmp_path / f"{picture}.zip", {"a.png": _file(pixels)})
            found = _images(source, resolution=side, transform=transform, labels="none")[0][0]
            np.testing.assert_array_equal(found.transpose(1, 2, 0), recorded[key], err_msg=key)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _png_header(width: int, height: int) -> bytes:
    """Return a small PNG that claims to be large."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(2**20))
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", pixels) + _chunk(b"IEND", b"")


def _animated(form: str) -> bytes:
    content = io.BytesIO()
    frames = [Image.fromarray(_pixels(seed)) for seed in range(3)]
    frames[0].save(content, format=form, save_all=True, append_images=frames[1:])
    return content.getvalue()


def _transparent(alpha: int) -> bytes:
    return _file(np.dstack([_pixels(9), np.full((12, 16), alpha, np.uint8)]))


HOSTILE = {
    "truncated.png": (_file(_pixels(0))[:-200], "cannot be decoded"),
    "truncated.jpg": (_file(_pixels(0), "jpeg")[:-100], "cannot be decoded"),
    "twenty_gigapixels.png": (_png_header(200_000, 100_000), "too large"),
    "hundred_megapixels.png": (_png_header(10_000, 10_000), "too large"),
    "text_bomb.png": (
        TREE["n02/a.png"][:33] + _chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**27))) + TREE["n02/a.png"][33:],
        "cannot be decoded|it is no",
    ),
    "animated.gif": (_animated("gif"), "animation of 3 frames"),
    "animated.png": (_animated("png"), "animation of 3 frames"),
    "transparent.png": (_transparent(100), "transparent in places"),
    "sixteen_bits.png": (_file(np.arange(192, dtype=np.uint16).reshape(12, 16)), "colour mode is I;16"),
    "floats.tiff": (_file(np.zeros((4, 4), np.float32), "tiff"), "colour mode is F"),
    "script.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "it is no PNG, JPEG"),
    "empty.png": (b"", "it is no PNG"),
    "text.jpg": (b"hello", "it is no PNG"),
    "page.jpg": (b"<html>404</html>", "it is no PNG"),
}
HANDLED = {
    "cmyk.jpg": _file(_pixels(0), "jpeg", mode="CMYK"),
    "grey.png": _file(_pixels(1, (9, 9))),
    "opaque.png": _transparent(255),
    "palette.gif": _file(_pixels(2), "gif"),
    "black_and_white.png": _file(_pixels(3, (9, 9)), mode="1"),
    "a_png_called.jpeg": _file(_pixels(4)),
}


def _unreadable(dataset: Images) -> dict[str, str]:
    """Return the reason of each picture that cannot be read."""
    found = {}
    for index in range(len(dataset)):
        try:
            pixels, _ = dataset[index]
            assert pixels.shape == (3, 8, 8)
        except UnreadableImage as error:
            found[error.name] = error.reason
    return found


@pytest.mark.parametrize("holder", ["folder", "zip", "tar"])
def test_hostile_pictures_are_named_with_the_reason_and_odd_ones_are_read(tmp_path, holder):
    members = {name: content for name, (content, _) in HOSTILE.items()} | HANDLED
    make = {"folder": _folder, "zip": _zip, "tar": _tar}[holder]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = _unreadable(_images(make(tmp_path / "a", members), labels="none"))
    assert set(found) == set(HOSTILE)
    for name, (_, reason) in HOSTILE.items():
        assert any(part in found[name] for part in reason.split("|")), (name, found[name])
        assert "\n" not in found[name]


def test_cmyk_is_converted_as_colours(tmp_path):
    red = np.zeros((8, 8, 3), np.uint8) + np.array([250, 10, 10], np.uint8)
    source = _zip(tmp_path / "a.zip", {"a.jpg": _file(red, "jpeg", mode="CMYK")})
    found = _images(source, labels="none")[0][0]
    assert abs(found.transpose(1, 2, 0).astype(int) - red).max() < 12


def test_a_grey_dataset_refuses_colours_and_keeps_one_channel(tmp_path):
    source = _zip(tmp_path / "a.zip", {"a.png": _file(_pixels(0, (8, 8))), "b.png": _file(_pixels(1))})
    for transform in ("scale", "center_crop"):
        dataset = _images(source, labels="none", channels=1, transform=transform)
        assert np.array_equal(dataset[0][0][0], _pixels(0, (8, 8)))
        assert _unreadable_names(dataset, [1]) == ["b.png: it is in colour, and the dataset has one channel"]


def _unreadable_names(dataset: Images, indices) -> list[str]:
    found = []
    for index in indices:
        with pytest.raises(UnreadableImage) as caught:
            dataset[index]
        found.append(str(caught.value))
    return found


def test_names_that_lead_out_of_an_archive_are_refused_and_nothing_is_written(tmp_path):
    good = TREE["n02/a.png"]
    names = ["../../evil.png", "/etc/evil.png", "a/../../evil.png", "c:\\evil.png", "fine.png"]
    (tmp_path / "in").mkdir()
    for source in (
        _zip(tmp_path / "in" / "a.zip", dict.fromkeys(names, good)),
        _tar(tmp_path / "in" / "a.tar", dict.fromkeys(names, good)),
    ):
        found = _unreadable(_images(source, labels="none"))
        assert found == dict.fromkeys(names[:-1], "its name leads out of the archive")
    assert not list(tmp_path.rglob("evil*"))


def test_links_are_followed_inside_a_folder_only(tmp_path):
    folder = _folder(tmp_path / "tree", {"real.png": TREE["n02/a.png"], "sub/b.png": TREE["n02/a.png"]})
    outside = _folder(tmp_path / "outside", {"secret.png": TREE["n02/a.png"]})
    (folder / "inside.png").symlink_to(folder / "real.png")
    (folder / "outside.png").symlink_to(outside / "secret.png")
    (folder / "up.png").symlink_to("../outside/secret.png")
    (folder / "nothing.png").symlink_to("absent.png")
    (folder / "itself.png").symlink_to("itself.png")
    (folder / "elsewhere").symlink_to(outside)
    (folder / "again").symlink_to(folder / "sub")
    (folder / "a_folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    dataset = _images(folder, labels="none")
    assert _unreadable(dataset) == {
        "outside.png": "it is a link out of the folder",
        "up.png": "it is a link out of the folder",
        "elsewhere": "it is a link out of the folder",
        "again": "it is a link to a folder",
        "nothing.png": "it is a link to nothing",
        "itself.png": "it is a link to nothing",
        "pipe.png": "it is no regular file",
    }
    assert len(dataset) == 10


def test_links_bombs_and_repetitions_in_archives_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(_sources, "_LARGEST_FILE", 2**16)
    good = TREE["n02/a.png"]
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        link = zipfile.ZipInfo("link.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("bomb.png", bytes(2**24))
        archive.writestr("fine.png", good)
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("fine.png", good)
    (tmp_path / "liar.zip").write_bytes(_lying(bytes(2**20), claims=1000))
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for kind, name in ((tarfile.SYMTYPE, "link.png"), (tarfile.LNKTYPE, "hard.png"), (tarfile.CHRTYPE, "null.png")):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
        member = tarfile.TarInfo("bomb.png")
        member.size = 2**17
        archive.addfile(member, io.BytesIO(bytes(2**17)))
    large = "bytes, more than the 65,536 that are read"
    assert _unreadable(_images(tmp_path / "a.zip", labels="none")) == {
        "link.png": "it is a link",
        "bomb.png": f"it has 16,777,216 {large}",
        "fine.png": "its name is there twice",
    }
    assert _unreadable(_images(tmp_path / "a.tar", labels="none")) == {
        "link.png": "it is a link",
        "hard.png": "it is a link",
        "null.png": "it is no regular file",
        "bomb.png": f"it has 131,072 {large}",
    }
    (reason,) = _unreadable(_images(tmp_path / "liar.zip", labels="none")).values()
    assert "cannot be unpacked (Bad CRC-32" in reason


def _lying(content: bytes, *, claims: int) -> bytes:
    """Return a zip whose member unfolds to more than it says."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("liar.png", content)
    return made.getvalue().replace(struct.pack("<I", len(content)), struct.pack("<I", claims))


def test_a_compressed_tar_that_unfolds_too_far_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(_sources, "_SMALL", 2**20)
    source = _tar(tmp_path / "a.tar.xz", {"a.png": bytes(2**23)}, mode="w:xz")
    with pytest.raises(ValueError, match=r"a\.tar\.xz: unpacks to more than 100 times its size"):
        _images(source)


def test_what_is_no_source_is_one_line(tmp_path):
    cases = {
        "absent": (None, "there is no such file or folder"),
        "text.zip": (b"hello", "cannot be read as a zip or tar archive"),
        "cut.zip": (b"PK\x03\x04 and no more", "cannot be read as a zip archive"),
        "cut.tar": (_tar_bytes(TREE)[:3000], "cannot be read as a zip or tar archive"),
        "cut.tar.gz": (_tar_bytes(TREE, mode="w:gz")[:300], "cannot be unpacked"),
        "bad.folder": (b"{}", "fetch the input again"),
        "gone.folder": (json.dumps({"folder": str(tmp_path / "gone")}).encode(), "there is no folder"),
        "no_pictures.zip": (None, "no_pictures.zip: no images"),
    }
    _zip(tmp_path / "no_pictures.zip", {"a.txt": b"x"})
    for name, (content, message) in cases.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=message) as caught:
            _images(tmp_path / name)
        assert name in str(caught.value) and "\n" not in str(caught.value)


def test_a_damaged_tar_in_a_tar_is_named_and_the_others_are_read(tmp_path):
    good = _tar_bytes({"a.png": TREE["n02/a.png"]})
    source = _tar(tmp_path / "a.tar", {"n01.tar": good, "n02.tar": good[:100] + b"x" * 1000, "n03.tar": good})
    dataset = _images(source)
    assert list(_unreadable(dataset)) == ["n02.tar"] and dataset.class_names == ("n01", "n03")


def test_a_picture_beside_the_class_folders_is_refused_and_flat_sources_have_no_classes(tmp_path):
    beside = _images(_zip(tmp_path / "a.zip", TREE | {"lost.png": TREE["n02/a.png"]}))
    assert _unreadable(beside) == {"lost.png": "it is in none of the class folders"}
    flat = _zip(tmp_path / "b.zip", {"one/a.png": TREE["n02/a.png"], "one/b.png": TREE["n02/a.png"]})
    with pytest.raises(ValueError, match=r"b\.zip: .*labels: none"):
        _images(flat)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"resolution": 48}, "power of two, such as 64, found 48"),
        ({"transform": "stretch"}, "one of scale, center_crop, found 'stretch'"),
        ({"labels": "names"}, "rotations, found 'names'"),
        ({"unreadable_share": 2.0}, r"in \[0, 1\], found 2"),
    ],
)
def test_options_that_are_none_are_refused(tmp_path, option, message):
    with pytest.raises(ValueError, match=message):
        _images(_zip(tmp_path / "a.zip"), **option)


def test_unreadable_pictures_are_listed_in_the_card_and_fatal_above_the_share(tmp_path, caplog):
    members = {f"a/{index}.png": _file(_pixels(index)) for index in range(8)}
    members |= {"b/0.png": b"broken", "b/1.png": _file(_pixels(9))}
    source = _zip(tmp_path / "a.zip", members)
    with pytest.raises(ValueError, match=r"unreadable_share: 1 of 10 .* 0\.05: b/0\.png: it is no"):
        prepare(_images(source, unreadable_share=0.05), target=tmp_path / "x.zip")
    assert not (tmp_path / "x.zip").exists()
    caplog.clear()
    card = prepare(_images(source, unreadable_share=0.1), target=tmp_path / "x.zip")
    assert [each["name"] for each in card["unreadable"]] == ["b/0.png"] and "it is no" in card["unreadable"][0][
        "reason"
    ]
    assert "left out: b/0.png" in caplog.text
    assert sealed(card) == read_json(tmp_path / "x.json") and card["class_names"] == ["a", "b"]
    assert (card["images"], card["images_per_class"]) == (9, [8, 1])
    with zipfile.ZipFile(tmp_path / "x.zip") as archive:
        assert archive.namelist()[-2:] == ["00000/img00000008.png", "dataset.json"], "numbers have no gaps"


def test_a_dataset_of_nothing_readable_is_refused_whatever_the_share(tmp_path):
    with pytest.raises(ValueError, match="unreadable_share: 2 of 2 "):
        prepare(
            _images(_zip(tmp_path / "a.zip", {"a.png": b"", "b.png": b""}), labels="none", unreadable_share=1.0),
            target=tmp_path / "x.zip",
        )


def test_the_contact_sheet_shows_a_class_a_row(tmp_path):
    colours = {"a": (200, 0, 0), "b": (0, 200, 0)}
    members = {
        f"{name}/{index}.png": _file(np.zeros((8, 8, 3), np.uint8) + np.array(colour, np.uint8))
        for name, colour in colours.items()
        for index in range(3 if name == "a" else 1)
    }
    prepare(_images(_zip(tmp_path / "a.zip", members)), target=tmp_path / "x.zip")
    sheet = np.array(Image.open(tmp_path / "x.png"))
    assert sheet.shape == (16, 24, 3)
    assert (sheet[:8] == (200, 0, 0)).all() and (sheet[8:, :8] == (0, 200, 0)).all() and not sheet[8:, 8:].any()
    before = sha256_of_file(tmp_path / "x.png")
    prepare(_images(tmp_path / "a.zip"), target=tmp_path / "x.zip")
    assert sha256_of_file(tmp_path / "x.png") == before
    assert len(ImageZip(source=tmp_path / "x.zip")) == 4


def test_folders_without_images_are_refused_or_counted_and_others_keep_their_numbers(tmp_path):
    members = {name: TREE["n02/a.png"] for name in ("a/0.png", "c/0.png", "a/.hidden/1.png", "@eaDir/x.png")}
    folder = _folder(tmp_path / "tree", members | {"notes/read.txt": b"x", "a/2.avif": b"x", "a/3": b"x"})
    dataset = _images(folder)
    assert dataset.class_names == ("a", "c") and list(_unreadable(dataset)) == ["a/2.avif"]
    assert [(each.reason, each.files) for each in dataset.unused] == [
        ("it ends in .txt", 1),
        ("it is hidden", 2),
        ("its name has no ending", 1),
    ]
    (folder / "b").mkdir()
    with pytest.raises(ValueError, match=r"tree: .*class folders b"):
        _images(folder)


@pytest.mark.parametrize("name", ["cat\\0.png", "a/b\\c.png"])
def test_names_with_backslashes_get_their_own_reason(tmp_path, name):
    found = _unreadable(_images(_tar(tmp_path / "a.tar", {name: b"", "x/y.png": TREE["n02/a.png"]}), labels="none"))
    assert "backslashes" in found[name]


def test_parts_are_resumed_only_with_the_same_readable_files(tmp_path):
    folder = _folder(tmp_path / "tree", {f"{n:03d}.png": TREE["n02/a.png"] for n in range(6)} | {"9.png": b"x"})
    options = {"target": tmp_path / "x.zip", "origin": {}, "shard": 2}
    with pytest.raises(ValueError, match=r"9\.png"):
        prepare(_images(folder, labels="none"), **options)
    parts = tmp_path / ".x.zip.parts"
    before = {path.name: path.stat().st_mtime_ns for path in parts.glob("*.npz")}
    os.utime(folder / "002.png", ns=(1, 1))
    with pytest.raises(ValueError, match=r"9\.png"):
        prepare(_images(folder, labels="none"), **options)
    after = {path.name: path.stat().st_mtime_ns for path in parts.glob("*.npz")}
    assert [name for name in sorted(after) if after[name] != before[name]] == ["000001.npz", "000003.npz"]
