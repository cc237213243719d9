"""Inputs shipped by installed distributions or provided by hand."""

from __future__ import annotations

import hashlib
import json
import subprocess

import pytest
import yaml

from onestep.fetch.local_files import fetch_file, fetch_packaged, verify_placed
from onestep.folders import folder_state

PACKAGE, PATH = "scikit-learn", "sklearn/datasets/data/digits.csv.gz"


@pytest.fixture(scope="module")
def sha256():
    from importlib import resources

    return hashlib.sha256((resources.files("sklearn") / "datasets/data/digits.csv.gz").read_bytes()).hexdigest()


def test_copies_verifies_and_records(tmp_path, sha256):
    target = tmp_path / "inputs" / "digits.csv.gz"
    fetch_packaged(PACKAGE, PATH, sha256, target=target)
    assert hashlib.sha256(target.read_bytes()).hexdigest() == sha256
    subprocess.run(["sha256sum", "--check", "--quiet", f"{target.name}.sha256"], cwd=target.parent, check=True)
    assert len(list(target.parent.iterdir())) == 2


def test_the_demo_names_the_file_that_the_lock_installs(sha256, pytestconfig):
    demo = yaml.safe_load((pytestconfig.rootpath / "demo" / "config.yaml").read_text())
    entry = demo["inputs"]["digits"]
    assert (entry["package"], entry["path"], entry["sha256"]) == (PACKAGE, PATH, sha256)


def test_another_hash_is_refused_with_both_named(tmp_path, sha256):
    with pytest.raises(ValueError, match=f"{PATH}.*sha256 {sha256}, expected {'0' * 64}"):
        fetch_packaged(PACKAGE, PATH, "0" * 64, target=tmp_path / "digits.csv.gz")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("package", "path", "message"),
    [
        ("no-such-distribution", PATH, "^no-such-distribution: "),
        (PACKAGE, "sklearn/absent.csv", r"^scikit-learn [\d.]+: .*sklearn/absent.csv"),
        (PACKAGE, "../../../../etc/hostname", r"^scikit-learn [\d.]+: .*etc/hostname"),
    ],
)
def test_what_is_not_there_is_named(tmp_path, package, path, message):
    with pytest.raises(ValueError, match=message):
        fetch_packaged(package, path, "0" * 64, target=tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("known", [True, False])
def test_a_file_provided_by_hand_is_copied_and_recorded(tmp_path, known):
    source, target = tmp_path / "mine.bin", tmp_path / "inputs" / "mine.bin"
    source.write_bytes(b"content")
    sha256 = hashlib.sha256(b"content").hexdigest()
    fetch_file(source, sha256.upper() if known else None, target=target)
    assert target.read_bytes() == b"content"
    assert (target.parent / "mine.bin.sha256").read_text() == f"{sha256}  mine.bin\n"


def test_a_file_provided_by_hand_must_be_there_and_be_the_right_one(tmp_path):
    source, target = tmp_path / "mine.bin", tmp_path / "inputs" / "mine.bin"
    with pytest.raises(ValueError, match=f"^{source}: "):
        fetch_file(source, None, target=target)
    source.write_bytes(b"other")
    with pytest.raises(ValueError, match=rf"^{source}: .*sha256 \w{{64}}, expected 0{{64}}"):
        fetch_file(source, "0" * 64, target=target)
    assert not target.exists()


def test_a_large_file_is_linked_and_verified_all_the_same(tmp_path):
    source, target = tmp_path / "mine.bin", tmp_path / "inputs" / "mine.bin"
    source.write_bytes(b"content")
    with pytest.raises(ValueError, match="expected 0{64}"):
        fetch_file(source, "0" * 64, target=target, linked_from=7)
    assert not target.exists() and source.read_bytes() == b"content"
    fetch_file(source, None, target=target, linked_from=7)
    assert target.samefile(source)
    fetch_file(source, None, target=target, linked_from=8)
    assert not target.samefile(source) and target.read_bytes() == b"content"


def test_a_large_file_of_another_disk_is_linked_by_name(tmp_path, monkeypatch):
    def another_disk(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("os.link", another_disk)
    source, target = tmp_path / "mine.bin", tmp_path / "inputs" / "mine.bin"
    source.write_bytes(b"content")
    fetch_file(source, None, target=target, linked_from=7)
    assert target.is_symlink() and target.read_bytes() == b"content"


def test_a_folder_becomes_its_description(tmp_path):
    folder, target = tmp_path / "pictures", tmp_path / "inputs" / "pictures.folder"
    (folder / "b").mkdir(parents=True)
    (folder / "b" / "2.png").write_bytes(b"22")
    (folder / "1.png").write_bytes(b"1")
    fetch_file(folder, None, target=target)
    described = json.loads(target.read_text())
    listing = hashlib.sha256(b'[["1.png",1],["b/2.png",2]]').hexdigest()
    expected = {"folder": str(folder), "files": 2, "bytes": 3, "listing_sha256": listing, "state": folder_state(folder)}
    assert described == expected
    fetch_file(folder, listing, target=target)
    verify_placed(target)
    (folder / "1.png").unlink()
    with pytest.raises(ValueError, match=f"^{folder}: .*1 files, 2 bytes, .*, expected 2 files, 3 bytes, "):
        verify_placed(target)
    with pytest.raises(ValueError, match=f"^{folder}: .*sha256 .*, expected {listing}"):
        fetch_file(folder, listing, target=target)


def test_a_folder_where_a_file_was_planned_is_refused(tmp_path):
    with pytest.raises(ValueError, match=f"^{tmp_path}: .*a folder, expected a file"):
        fetch_file(tmp_path, None, target=tmp_path / "x" / "pictures")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=f"^{tmp_path}/empty: "):
        fetch_file(tmp_path / "empty", None, target=tmp_path / "x" / "empty.folder")
