"""The table of class embeddings: genuine pickles of torch and dill are read, everything else is refused."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import nn

from onestep.checkpoints.published_weights import read_class_embeddings

_SET = b"cbuiltins\nset\n"
_SET_BY_DILL = b"cdill._dill\n_load_type\nX\x03\x00\x00\x00set\x85R"


def _table():
    return nn.Embedding(7, 5, _weight=torch.arange(35.0).reshape(7, 5))


def _read(folder, content):
    path = folder / "embeddings.pkl"
    path.write_bytes(content)
    return read_class_embeddings(path)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_what_was_pickled_is_what_is_read(tmp_path, protocol):
    found = _read(tmp_path, pickle.dumps({"embed": _table()}, protocol=protocol))
    assert found.dtype == torch.float32 and torch.equal(found, _table().weight)


def test_dills_name_for_set_is_read(tmp_path):
    content = pickle.dumps({"embed": _table()}, protocol=3)
    assert _SET in content
    content = content.replace(_SET, _SET_BY_DILL)
    assert torch.equal(_read(tmp_path, content), _table().weight)
    with pytest.raises(ValueError, match="'eval'"):
        _read(tmp_path, content.replace(b"X\x03\x00\x00\x00set", b"X\x04\x00\x00\x00eval"))


class _Evil:
    def __reduce__(self):
        return print, ("this must not be printed",)


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"embed": _Evil()}, "names the global 'builtins.print', which is not on the list"),
        ({"embed": nn.Linear(2, 2)}, "names the global 'torch.nn.modules.linear.Linear'"),
        ({"embed": _table(), "more": 1}, "not a dict with the one key 'embed'"),
        ([1], "not a dict with the one key 'embed'"),
        ({"embed": 1}, "under 'embed' the file holds a value of type int, not an embedding"),
        ({"embed": _table().double()}, r"the table is torch.float64 \[7, 5\], not float32"),
        ({"embed": nn.Embedding(1, 1, _weight=torch.tensor([[torch.nan]]))}, "entries that are not finite"),
    ],
)
def test_everything_else_is_refused(tmp_path, capsys, document, said):
    with pytest.raises(ValueError, match=said) as error:
        _read(tmp_path, pickle.dumps(document, protocol=3))
    assert "embeddings.pkl" in str(error.value) and "expected the published class embeddings" in str(error.value)
    assert capsys.readouterr().out == ""


def test_damaged_files_are_refused(tmp_path):
    content = pickle.dumps({"embed": _table()}, protocol=3)
    for length in (0, 1, 50, len(content) // 2, len(content) - 1):
        with pytest.raises(ValueError, match="expected the published class embeddings"):
            _read(tmp_path, content[:length])
    with pytest.raises(ValueError, match="follow the end of the pickle"):
        _read(tmp_path, content + b"x")
