"""CIFAR-10 in its real container: read without executing anything, in order, the same bytes however it is done."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from cifar_files import array, batch, pictures, python2_text, write_cifar, write_tar

from onestep.data._archive import prepare
from onestep.data.cifar10 import Cifar10, read_batch
from onestep.data.image_zip import ImageZip
from onestep.files import sha256_of_file

BATCHES = [f"data_batch_{number}" for number in range(1, 6)]


def test_the_test_writes_what_python_2_wrote():
    pixels, labels = pictures(4)
    found = pickle.loads(batch(pixels, labels), encoding="bytes")
    assert set(found) == {b"batch_label", b"labels", b"data", b"filenames"} and found[b"labels"] == labels
    assert np.array_equal(found[b"data"], pixels.reshape(4, 3072)) and found[b"data"].dtype == np.uint8


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("keys", [("data", "labels"), (b"data", b"labels")])
def test_what_python_3_makes_of_a_batch_is_read(protocol, keys):
    pixels, labels = pictures(6)
    content = pickle.dumps(dict(zip(keys, (pixels.reshape(6, 3072), labels), strict=True)), protocol=protocol)
    read_pixels, read_labels = read_batch(content)
    assert np.array_equal(read_pixels, pixels) and read_labels.tolist() == labels


def test_all_50000_pictures_are_read_in_the_order_of_the_files(tmp_path):
    pixels, labels = write_cifar(tmp_path / "cifar-10-python.tar.gz", each=10_000)
    dataset = Cifar10(source=tmp_path / "cifar-10-python.tar.gz")
    assert (len(dataset), dataset.channels, dataset.resolution, dataset.classes) == (50_000, 3, 32, 10)
    assert dataset.class_names[:4] == ("airplane", "automobile", "bird", "cat")
    found = [dataset[index] for index in range(50_000)]
    assert [label for _, label in found] == labels
    assert all(np.array_equal(found[index][0], pixels[index]) for index in range(0, 50_000, 97))


def test_the_archive_is_the_same_bytes_twice_and_for_any_number_of_workers(tmp_path):
    pixels, labels = write_cifar(tmp_path / "cifar-10-python.tar.gz", each=110)
    for run, workers in enumerate((1, 1, 2)):
        dataset = Cifar10(source=tmp_path / "cifar-10-python.tar.gz")
        prepare(dataset, target=tmp_path / str(run) / "cifar10.zip", workers=workers, shard=16)
    for name in ("cifar10.zip", "cifar10.json", "cifar10.png"):
        assert len({sha256_of_file(tmp_path / str(run) / name) for run in range(3)}) == 1
    assert sorted(path.name for path in (tmp_path / "2").iterdir()) == ["cifar10.json", "cifar10.png", "cifar10.zip"]
    found, found_labels = ImageZip(source=tmp_path / "0" / "cifar10.zip").read_all()
    assert np.array_equal(found, pixels) and found_labels.tolist() == labels


ROWS = np.zeros((2, 3072), np.uint8)


def _document(data: bytes, labels: bytes = b"](K\x01K\x02e") -> bytes:
    return b"\x80\x02}(" + python2_text(b"data") + data + python2_text(b"labels") + labels + b"u."


WRONG = {
    "a call": (b"\x80\x02cos\nsystem\nU\x04true\x85R.", r"names the global 'os\.system'.*nothing was run"),
    "an eval in disguise": (b"\x80\x02cbuiltins\neval\nU\x011\x85R.", r"builtins\.eval"),
    "a call of the array type": (_document(b"cnumpy\nndarray\nK\x01\x85R"), "array"),
    "an array of objects": (_document(array(ROWS).replace(b"U\x02u1", b"U\x02O8")), "number type of numpy"),
    "an array of floats": (_document(array(ROWS).replace(b"U\x02u1", b"U\x02f4")), "sets the state of"),
    "fewer columns": (_document(array(ROWS[:, :3000])), r"array \[2, 3000\], expected \[N, 3072\]"),
    "more rows than bytes": (_document(array(ROWS).replace(b"J\x02\0\0\0", b"J\x09\0\0\0")), r"\[9, 3072\] are 6144 b"),
    "no rows": (_document(array(ROWS[:0]), b"]"), r"\[0, 3072\]"),
    "no data": (b"\x80\x02}.", "under 'data' it holds"),
    "no dict": (b"\x80\x02].", "not a dict"),
    "too few labels": (_document(array(ROWS), b"](K\x01e"), "holds 1 labels, expected a list of 2"),
    "a label of 10": (_document(array(ROWS), b"](K\x01K\x0ae"), "none of the classes 0 to 9"),
    "a label of text": (_document(array(ROWS), b"](K\x01U\x011e"), "none of the classes 0 to 9"),
    "a negative length": (b"\x80\x02T\xff\xff\xff\xff.", "-1"),
    "a truncated pickle": (_document(array(ROWS))[:-900], "6144 bytes"),
    "something behind the pickle": (_document(array(ROWS)) + b"x", "follow the end"),
    "text": (b"hello", "not a pickle"),
}


def test_a_batch_that_would_run_code_is_refused_and_runs_nothing(tmp_path):
    marker = tmp_path / "marker"
    call = b"\x80\x02cos\nsystem\n" + python2_text(f"touch {marker}".encode()) + b"\x85R."
    pickle.loads(call)
    assert marker.exists()
    marker.unlink()
    with pytest.raises(ValueError, match=r"os\.system"):
        read_batch(call)
    assert not marker.exists()


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_batch_is_one_error_that_names_file_and_batch(tmp_path, case):
    content, message = WRONG[case]
    members = dict.fromkeys(BATCHES, batch(*pictures(2))) | {"data_batch_3": content}
    with pytest.raises(ValueError, match=rf"c\.tar\.gz: data_batch_3: .*{message}.*download cifar-10") as caught:
        Cifar10(source=write_tar(tmp_path / "c.tar.gz", members))
    assert "\n" not in str(caught.value)


def test_another_archive_is_refused(tmp_path):
    two = batch(*pictures(2))
    path = write_tar(tmp_path / "c.tar.gz", dict.fromkeys(BATCHES[:4], two))
    with pytest.raises(ValueError, match="holds no data_batch_5"):
        Cifar10(source=path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"c\.tar\.gz: cannot be read as a tar archive"):
        Cifar10(source=path)
    path.write_bytes(b"hello")
    with pytest.raises(ValueError, match="cannot be read as a tar archive"):
        Cifar10(source=path)
    write_tar(path, dict.fromkeys(BATCHES, two) | {"data_batch_2": batch(*pictures(3))})
    with pytest.raises(ValueError, match=r"\[2, 3, 2, 2, 2\]"):
        Cifar10(source=path)
    write_tar(path, {"data_batch_1": bytes(2**26 + 1)})
    with pytest.raises(ValueError, match="no member of CIFAR-10 has"):
        Cifar10(source=path)
