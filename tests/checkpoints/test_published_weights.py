"""Published weights: safetensors and torch's own files; nothing but tensors comes out of either."""

from __future__ import annotations

import zipfile

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from onestep.checkpoints.published_weights import read_published_weights

_WEIGHTS = {"b.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2)}


def _same(found):
    return set(found) == set(_WEIGHTS) and all(torch.equal(found[key], value) for key, value in _WEIGHTS.items())


def test_safetensors_are_read(tmp_path):
    save_file(_WEIGHTS, tmp_path / "model.safetensors")
    assert _same(read_published_weights(tmp_path / "model.safetensors"))


@pytest.mark.parametrize("wrap", [lambda w: w, lambda w: {"model": w}, lambda w: {"state_dict": w, "epoch": 3}])
@pytest.mark.parametrize("suffix", ["pth", "pt", "bin"])
def test_torchs_files_are_read_wrapped_or_not(tmp_path, wrap, suffix):
    path = tmp_path / f"model.{suffix}"
    torch.save(wrap(_WEIGHTS), path)
    assert _same(read_published_weights(path))


def test_objects_are_refused_and_not_made(tmp_path):
    path = tmp_path / "model.pth"
    torch.save(nn.Linear(2, 2), path)
    with pytest.raises(ValueError, match="model.pth: not a whole file of tensors alone"):
        read_published_weights(path)


def test_what_is_damaged_or_something_else_is_refused(tmp_path):
    path = tmp_path / "model.pth"
    torch.save(_WEIGHTS, path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match="not a whole file of tensors alone"):
        read_published_weights(path)
    torch.save({"weight": 1}, path)
    with pytest.raises(ValueError, match="expected tensors by name, at the top or under model or state_dict"):
        read_published_weights(path)
    with pytest.raises(ValueError, match=r"are read from .safetensors, .pth, .pt and .bin, not from '.h5'"):
        read_published_weights(tmp_path / "model.h5")


def test_a_program_is_refused_with_the_way_out(tmp_path):
    path = tmp_path / "ViT-B-32.pt"
    with zipfile.ZipFile(path, "w") as archive:  # as torch.jit.save writes them
        archive.writestr("ViT-B-32/data.pkl", b"")
        archive.writestr("ViT-B-32/code/__torch__.py", "")
    with pytest.raises(ValueError, match=r"ViT-B-32\.pt: a TorchScript program, .*fetch the same weights as tensors"):
        read_published_weights(path)
