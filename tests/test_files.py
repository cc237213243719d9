"""Files are whole or absent."""

import os

import pytest

from onestep import files


def test_a_failed_write_leaves_the_old_content_and_no_leftover(tmp_path):
    path = tmp_path / "value.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(RuntimeError), files.replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert files.read_json(path) == {"a": 1}
    assert os.listdir(tmp_path) == ["value.json"]


def test_not_a_number_has_no_place_in_json(tmp_path):
    with pytest.raises(ValueError, match="Out of range float values"):
        files.write_json(tmp_path / "value.json", {"fd": float("nan")})
    assert not os.listdir(tmp_path)


def test_a_broken_json_file_is_named(tmp_path):
    path = tmp_path / "value.json"
    path.write_text("{")
    with pytest.raises(ValueError, match=r"value\.json: not a JSON file .* delete it and run again"):
        files.read_json(path)


def test_canonical_json_does_not_depend_on_the_order_of_keys():
    assert files.canonical_json({"b": 1, "a": [1.0, "x"]}) == files.canonical_json({"a": [1.0, "x"], "b": 1})
