"""Arrays on disk: deterministic bytes, no pickles, clear errors."""

import numpy as np
import pytest

from onestep.archive import read_arrays, write_arrays


def test_arrays_and_facts_come_back_and_bytes_repeat(tmp_path):
    arrays = {"features": np.arange(6.0).reshape(2, 3)}
    for name in ("a", "b"):
        write_arrays(tmp_path / f"{name}.npz", arrays, about={"images": 2})
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    found = read_arrays(tmp_path / "a.npz")
    np.testing.assert_array_equal(found.arrays["features"], arrays["features"])
    assert found.about == {"images": 2} and set(found.arrays) == {"features"}


@pytest.mark.parametrize("damage", ["truncated", "text", "foreign", "pickled"])
def test_anything_else_is_one_error_that_names_the_file(tmp_path, damage):
    path = tmp_path / "samples.npz"
    write_arrays(path, {"pixels": np.zeros((2, 4, 4, 1), np.uint8)}, about={})
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:200])
    elif damage == "text":
        path.write_text("not an archive")
    elif damage == "foreign":
        np.savez(path, pixels=np.zeros(3))
    else:
        np.savez(path, about=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match=r"samples\.npz: not an archive of this pipeline .* run again"):
        read_arrays(path)
