"""Archives and arrays of images from elsewhere, and the command lines that name them."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forks import Ended, Forks
from pictures import deep_png, edm_zip, is_refused, picture

CLASSIFIER = {"name": "convnet", "resolution": 16, "channels": 3, "classes": 10, "width": 8}
EXTRACTOR = ("--features", '{"name": "classifier"}', "--weights")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of pictures in colour."""
    import torch

    from onestep.checkpoints.snapshot import write_snapshot
    from onestep.classifiers import build_classifier

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "c.safetensors"
    write_snapshot(path, build_classifier(CLASSIFIER).state_dict(), CLASSIFIER)
    return path


@pytest.fixture
def extract(forks: Forks, tmp_path: Path, weights: Path) -> Callable[..., Ended]:
    """Extract features of a file."""

    def run(images: Path, **bounds: Any) -> Ended:
        words = ("extract", "--images", images, *EXTRACTOR, weights, "--output", tmp_path / "f.npz")
        return forks.onestep(*words, folder=tmp_path, **bounds)

    return run


def _patched(path: Path, **places: Any) -> Path:
    """Write bytes into the local header and the entry of dataset.json: by name (local offset, entry offset, bytes)."""
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        local = archive.getinfo("dataset.json").header_offset
    entry = content.rfind(b"PK\1\2")
    for in_local, in_entry, value in places.values():
        for begin in ([] if in_local is None else [local + in_local]) + (
            [] if in_entry is None else [entry + in_entry]
        ):
            content[begin : begin + len(value)] = value
    path.write_bytes(content)
    return path


def _labels(label: Any, count: int = 4) -> list[list[Any]]:
    return [[f"00000/img{i:08d}.png", label] for i in range(count)]


_UNPACKING = {
    "Deflate64": {"method": (8, 10, b"\x09\0")},
    "an unknown method": {"method": (8, 10, b"\x61\0")},
    "LZMA that is none": {"method": (8, 10, b"\x0e\0")},
    "encrypted": {"flags": (6, 8, b"\1\0")},
    "bytes that are no data": {"data": (30 + len("dataset.json"), None, b"\xff\xff\xff\xff")},
    "a wrong check sum": {"crc": (14, 16, b"\0\0\0\0")},
}


@pytest.mark.parametrize("how", _UNPACKING)
def test_a_dataset_json_that_cannot_be_unpacked_is_one_line(extract, tmp_path: Path, how: str) -> None:
    path = _patched(edm_zip(tmp_path / "d.zip", labels=_labels(1)), **_UNPACKING[how])
    assert is_refused(extract(path), "d.zip")


@pytest.mark.parametrize("label", [10**30, 10**12, 2**63, -1, 1.5, True, None, [], {}, "1"], ids=repr)
def test_labels_that_are_no_classes_are_one_line(extract, tmp_path: Path, label: Any) -> None:
    assert is_refused(extract(edm_zip(tmp_path / "d.zip", labels=_labels(label))), "d.zip")


@pytest.mark.parametrize(
    "content",
    [
        "{}",
        "[]",
        "null",
        "7",
        '"labels"',
        '{"labels": 3}',
        '{"labels": [[]]}',
        '{"labels": [1, 2]}',
        "\ufeff{}",
        "[" * 10**5,
    ],
    ids=range(10),
)
def test_a_dataset_json_of_another_shape_is_one_line(extract, tmp_path: Path, content: str) -> None:
    path = edm_zip(tmp_path / "d.zip", **{"dataset.json": content.encode()})
    assert is_refused(extract(path), "d.zip")


_EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.mark.parametrize(
    "content",
    [
        _EPS,
        b"\xc5\xd0\xd3\xc6" + (30).to_bytes(4, "little") + len(_EPS).to_bytes(4, "little") + bytes(18) + _EPS,
        picture(form="BMP"),
        picture(form="TIFF"),
        picture(form="GIF"),
        picture(form="JPEG2000"),
        picture(form="ICO"),
    ],
    ids=["PostScript", "PostScript in a wrapper", "BMP", "TIFF", "GIF", "JPEG 2000", "ICO"],
)
def test_a_member_of_another_format_is_refused_and_starts_no_program(extract, tmp_path: Path, content: bytes) -> None:
    programs, mark = tmp_path / "bin", tmp_path / "started"
    programs.mkdir()
    (programs / "gs").write_text(f"#!/bin/sh\ntouch {mark}\n")
    (programs / "gs").chmod(0o755)
    path = edm_zip(tmp_path / "d.zip", **{"00000/img00000004.png": content})
    ended = extract(path, variables={"PATH": f"{programs}:/usr/bin:/bin"})
    assert is_refused(ended, "d.zip", "img00000004.png")
    assert not mark.exists()


@pytest.mark.parametrize(("bits", "colour"), [(16, 0), (16, 2), (1, 0), (4, 0)])
def test_a_member_of_another_depth_is_refused_by_name(extract, tmp_path: Path, bits: int, colour: int) -> None:
    path = edm_zip(tmp_path / "d.zip", count=3, **{"00000/img00000003.png": deep_png(bits, colour=colour)})
    assert is_refused(extract(path), "d.zip", "img00000003.png")


def test_a_member_that_is_there_twice_is_refused_by_name(extract, tmp_path: Path) -> None:
    path = edm_zip(tmp_path / "d.zip")
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning):
        archive.writestr("00000/img00000001.png", picture(9))
    assert is_refused(extract(path), "d.zip", "img00000001.png")


def test_a_picture_of_billions_of_pixels_is_refused_by_name(extract, tmp_path: Path) -> None:
    bomb = bytearray(picture())
    bomb[16:24] = (60_000).to_bytes(4, "big") * 2
    path = edm_zip(tmp_path / "d.zip", **{"00000/img00000004.png": bytes(bomb)})
    assert is_refused(extract(path), "d.zip", "img00000004.png")


@pytest.mark.parametrize("shape", [(8, 3, 32, 32), (2, 3, 8, 8), (8, 32, 32), (4, 1, 16, 16)])
def test_an_array_in_another_order_is_told_the_order(forks: Forks, tmp_path: Path, weights: Path, shape) -> None:
    np.savez(tmp_path / "n.npz", arr_0=np.zeros(shape, np.uint8))
    np.savez(tmp_path / "r.npz", arr_0=np.zeros((16, 16, 16, 3), np.uint8))
    ended = _evaluate(forks, tmp_path, weights, images="n.npz", reference="r.npz")
    assert is_refused(ended, "n.npz", str(list(shape)), "[N, H, W, C]")


def _evaluate(forks: Forks, folder: Path, weights: Path, *, images: str, reference: str) -> Ended:
    words = ("evaluate", "--images", images, "--reference", reference, *EXTRACTOR, weights, "--output", "o.json")
    return forks.onestep(*words, "--metrics", '{"name": "frechet"}', folder=folder, limit=120)


@pytest.mark.parametrize("name", ["missing.npz", "missing.zip", "no_folder"])
def test_a_missing_reference_is_found_before_the_images_are_read(
    forks: Forks, tmp_path: Path, weights: Path, name
) -> None:
    (tmp_path / "n.npz").write_bytes(b"not read: it would be refused")
    ended = _evaluate(forks, tmp_path, weights, images="n.npz", reference=name)
    assert is_refused(ended, name)


@pytest.mark.parametrize("seeds", ["10-5", "5", "0,1,2", "0-", "a-b", "0-1-2", "0-99999999999999999999"])
def test_seeds_in_another_form_are_told_the_option(forks: Forks, tmp_path: Path, weights: Path, seeds: str) -> None:
    words = [
        "sample",
        "--weights",
        weights,
        "--sampler",
        '{"name": "one_step"}',
        f"--seeds={seeds}",
        "--output",
        "s.npz",
    ]
    ended = forks.onestep(*words, folder=tmp_path)
    assert is_refused(ended, "--seeds", seeds) and not (tmp_path / "s.npz").exists()


def _generator(path: Path, *, value: float, tensor: str, place: int = 0) -> Path:
    """Write a generator of which one number is `value`."""
    from onestep.checkpoints.snapshot import write_snapshot
    from onestep.networks import build_denoiser

    config = {"name": "song_unet", "img_resolution": 8, "img_channels": 3, "label_dim": 0, "model_channels": 16}
    config |= {"channel_mult": [1], "num_blocks": 1, "attn_resolutions": []}
    state = {name: each.clone() for name, each in build_denoiser(config).state_dict().items()}
    state[tensor].view(-1)[place] = value
    write_snapshot(path, state, config)
    return path


@pytest.mark.parametrize(
    ("tensor", "value"),
    [
        ("model.map_layer0.weight", float("nan")),
        ("model.map_layer1.bias", float("inf")),
        ("model.dec.8x8_aux_conv.weight", -float("inf")),
    ],
)
@pytest.mark.parametrize("verb", ["sample", "convert"])
def test_weights_that_are_not_finite_are_refused_by_name(
    forks: Forks, tmp_path: Path, tensor: str, value: float, verb: str
) -> None:
    path = _generator(tmp_path / "g.safetensors", value=value, tensor=tensor)
    ended = _use(forks, verb, path)
    assert is_refused(ended, "g.safetensors") and tensor in ended.text
    assert not (tmp_path / "out.npz").exists() and not (tmp_path / "out.safetensors").exists()


def test_pixels_that_are_not_finite_are_not_written(forks: Forks, tmp_path: Path) -> None:
    path = _generator(tmp_path / "g.safetensors", value=3e38, tensor="model.dec.8x8_aux_conv.bias")
    words = [
        "sample",
        "--weights",
        path,
        "--sampler",
        json.dumps({"name": "one_step", "sigma": 1e300}),
        "--seeds",
        "0-3",
    ]
    ended = forks.onestep(*words, "--output", tmp_path / "out.npz", folder=tmp_path)
    assert ended.code != 0 and "Traceback" not in ended.text and not (tmp_path / "out.npz").exists()


def _use(forks: Forks, verb: str, path: Path) -> Ended:
    out = path.parent / "out"
    if verb == "convert":
        return forks.onestep("convert", "--source", path, "--output", f"{out}.safetensors", folder=path.parent)
    words = ("sample", "--weights", path, "--sampler", '{"name": "one_step"}', "--seeds", "0-3")
    return forks.onestep(*words, "--output", f"{out}.npz", folder=path.parent)


@pytest.mark.parametrize("where", ["fifo", "zero", "folder", "loop"])
@pytest.mark.parametrize("verb", ["extract", "sample", "prepare"])
def test_what_is_no_file_is_one_line_in_bounded_time(
    forks: Forks, tmp_path: Path, weights: Path, where: str, verb: str
) -> None:
    path = tmp_path / ("x.zip" if verb == "prepare" else "x.npz" if verb == "extract" else "x.safetensors")
    {
        "fifo": lambda: os.mkfifo(path),
        "zero": lambda: path.symlink_to("/dev/zero"),
        "folder": path.mkdir,
        "loop": lambda: path.symlink_to(path.name),
    }[where]()
    block = json.dumps({"name": "images", "resolution": 16, "transform": "scale"})
    words = {
        "extract": ("extract", "--images", path, *EXTRACTOR, weights, "--output", "f.npz"),
        "sample": (
            "sample",
            "--weights",
            path,
            "--sampler",
            '{"name": "one_step"}',
            "--seeds",
            "0-3",
            "--output",
            "s.npz",
        ),
        "prepare": ("prepare", "--dataset", block, "--source", path, "--output", "o.zip", "--workers", 1),
    }[verb]
    assert is_refused(forks.onestep(*words, folder=tmp_path, limit=60, idle=4), path.name)
