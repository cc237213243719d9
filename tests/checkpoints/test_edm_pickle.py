"""EDM's pickles: what was saved is what is read, for old and new writers; whatever is damaged is one clear error."""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import edm_writer
import hostile_files
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from onestep.checkpoints.edm_pickle import EdmCheckpoint, read_edm_pickle
from onestep.networks import build_denoiser

WRITERS: dict[str, Callable[[Any], bytes]] = {
    "protocol 2": lambda document: edm_writer.dump(document, protocol=2),
    "protocol 3": lambda document: edm_writer.dump(document, protocol=3),
    "protocol 4": lambda document: edm_writer.dump(document, protocol=4),
    "protocol 5": lambda document: edm_writer.dump(document, protocol=5),
    "torch 1.12 and numpy 1, protocol 2": lambda document: _aged_dump(document, protocol=2),
    "torch 1.12 and numpy 1, protocol 3": lambda document: _aged_dump(document, protocol=3),
    "torch 1.12 and numpy 1, protocol 4": lambda document: _aged_dump(document, protocol=4),
}


def _aged_dump(document: dict[str, Any], *, protocol: int) -> bytes:
    edm_writer.aged(document["ema"])
    return edm_writer.with_old_names(edm_writer.dump(document, protocol=protocol))


def read(content: bytes, folder: Path) -> EdmCheckpoint:
    path = folder / "network.pkl"
    path.write_bytes(content)
    return read_edm_pickle(path)


def recorded(golden: Any) -> list[str]:
    names = sorted(name for name in golden.manifest["files"] if name.startswith("net_") and name.endswith(".npz"))
    assert names, "the manifest lists no networks"
    return names


def weights(golden: Any, name: str) -> dict[str, np.ndarray]:
    arrays = golden.load(name)
    return {key.removeprefix("sd/"): array for key, array in arrays.items() if key.startswith("sd/")}


def same(read_tensors: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return list(read_tensors) == list(expected) and all(
        mine.dtype == theirs.dtype and mine.shape == theirs.shape and _octets(mine) == _octets(theirs)
        for mine, theirs in zip(read_tensors.values(), expected.values(), strict=True)
    )


def _octets(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.golden
@pytest.mark.parametrize("writer", WRITERS)
def test_recorded_networks_come_back_bitwise(writer: str, golden: Any, tmp_path: Path) -> None:
    for name in recorded(golden):
        arrays, config = weights(golden, name), golden.constructor_kwargs(name)
        checkpoint = read(WRITERS[writer]({"ema": edm_writer.network(arrays, config)}), tmp_path)
        assert checkpoint.config == config
        assert same(checkpoint.state_dict, {key: torch.from_numpy(array) for key, array in arrays.items()})


@pytest.mark.golden
def test_read_networks_compute_what_was_recorded(golden: Any, tmp_path: Path) -> None:
    for name in recorded(golden):
        arrays = golden.load(name)
        content = edm_writer.dump({"ema": edm_writer.network(weights(golden, name), golden.constructor_kwargs(name))})
        checkpoint = read(content, tmp_path)
        network = build_denoiser(checkpoint.config).eval()
        network.load_state_dict(checkpoint.state_dict, strict=True)
        x, sigma, labels = (
            torch.from_numpy(arrays[key]) if key in arrays else None for key in ("x", "sigma", "labels")
        )
        with torch.no_grad():
            computed = network(x, sigma, labels).numpy()
        np.testing.assert_allclose(computed, arrays["edm/out"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("writer", WRITERS)
def test_all_kinds_of_tensors_are_read_as_an_ordinary_unpickler_would(writer: str, tmp_path: Path) -> None:
    content = WRITERS[writer](_trained())
    expected = edm_writer.unpickle(content)["ema"].state_dict()
    checkpoint = read(content, tmp_path)
    assert same(checkpoint.state_dict, expected)
    assert len(expected) == 14
    assert checkpoint.config == {"img_resolution": 8, "channel_mult": [1, 2], "gain": np.sqrt(0.5), "size": (2, 3)}
    assert type(checkpoint.config["gain"]) is float
    assert checkpoint.class_name == "EDMPrecond"


def _trained() -> dict[str, Any]:
    """Return what a trainer saves, with tensors of every kind in the network."""
    arguments = {"img_resolution": 8, "channel_mult": [1, 2], "gain": np.sqrt(0.5), "size": torch.Size([2, 3])}
    network = edm_writer.PersistentModule("EDMPrecond", **arguments)
    network.weight = nn.Parameter(torch.randn(3, 4))
    network.tied = network.weight
    network.halves, network.brains = nn.Parameter(torch.randn(5).half()), nn.Parameter(torch.randn(5).bfloat16())
    network.doubles, network.nothing = nn.Parameter(torch.randn(2).double()), nn.Parameter(torch.randn(0, 3))
    network.tagged = nn.Parameter(torch.randn(2), requires_grad=False)
    network.tagged.origin = "somewhere"
    network.register_parameter("absent", None)
    network.register_buffer("turned", torch.randn(4, 5).t())
    network.register_buffer("part", torch.arange(20.0)[3:13:2])
    network.register_buffer("scalar", torch.tensor(2.5))
    network.register_buffer("counted", torch.tensor([1, -(2**40)]))
    network.register_buffer("flags", torch.tensor([True, False, True]))
    network.register_buffer("unsaved", torch.randn(3), persistent=False)
    network.register_buffer("octets", torch.arange(7, dtype=torch.uint8))
    network.enc = nn.ModuleDict({"8x8_conv": edm_writer.PersistentModule("Conv2d")})
    network.enc["8x8_conv"].register_parameter("weight", nn.Parameter(torch.randn(2, 2)))
    network.add_module("skip", None)
    loss = edm_writer.PersistentModule("EDMLoss", P_mean=-1.2)
    options = edm_writer.EasyDict(class_name="training.dataset.ImageFolderDataset", xflip=False)
    return {"loss_fn": loss, "ema": network, "augment_pipe": None, "dataset_kwargs": options}


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    tensors = read(edm_writer.dump(_trained()), tmp_path).state_dict
    assert tensors["weight"].data_ptr() == tensors["tied"].data_ptr()


def test_the_moving_average_is_taken_and_its_absence_named(tmp_path: Path) -> None:
    network = hostile_files.network()
    other = edm_writer.network({"a": np.zeros(3, np.float32)}, {})
    assert "a" not in read(edm_writer.dump({"net": other, "ema": network}), tmp_path).state_dict
    with pytest.raises(ValueError, match="no key 'ema' in the file; its keys are: 'net', 'dataset_kwargs'"):
        read(edm_writer.dump({"net": network, "dataset_kwargs": {}}), tmp_path)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "the file is empty"),
        (b"A text.\n" * 100, "begins with b'A text"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 100, "is a PNG image"),
        (b"PK\x03\x04" + b"\0" * 100, "is a zip archive .TorchScript"),
        (b"<!DOCTYPE html><html></html>", "is a web page"),
        (b"\x1f\x8b\x08" + b"\0" * 100, "is a gzip archive"),
        (struct.pack("<Q", 2) + b'{"a":{}}', "is safetensors already"),
        (b"cos\nsystem\n(Vtouch /tmp/never\ntR.", "names the global 'os.system'"),
    ],
)
def test_a_file_that_is_no_pickle_is_called_what_it_is(content: bytes, found: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"network.pkl: .*{found}.*; expected one of EDM's network pickles"):
        read(content, tmp_path)


def test_a_path_that_is_no_file_is_named_once(tmp_path: Path) -> None:
    for path in (tmp_path / "none.pkl", tmp_path):
        with pytest.raises(ValueError) as refused:
            read_edm_pickle(path)
        assert str(refused.value).count(str(path)) == 1


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda network: network.__dict__.pop("_init_kwargs"), "no record ._init_kwargs."),
        (lambda network: network.__dict__.update(_init_args=(8, 3)), "arguments without names"),
        (lambda network: network._init_kwargs.update(more={1, 2}), "a value of type set"),
        (lambda network: network._init_kwargs.update(more={1: 2}), "a value of type dict"),
        (lambda network: network.__dict__.update(_buffers=[]), "_buffers are a value of type list"),
        (lambda network: network.__dict__.update(_modules={}), "has no weights"),
        (lambda network: network._buffers.update(more=1), "'more' among a network's _buffers is a value of type int"),
        (lambda network: network._modules.update(more=1), "'more' among a network's _modules is a value of type int"),
        (lambda network: network._buffers.update({"a.b": torch.ones(1)}), "the name 'a.b'"),
        (lambda network: network._parameters.update(more=torch.ones(1).int()), "'more' is torch.int32, not floating"),
        (lambda network: network._buffers.update(more=torch.ones(1).to_sparse()), "names the global"),
    ],
)
def test_a_network_that_is_not_as_saved_is_refused(change: Callable[[Any], Any], found: str, tmp_path: Path) -> None:
    network = hostile_files.network()
    network._non_persistent_buffers_set = set()
    change(network)
    with pytest.raises(ValueError, match=found):
        read(edm_writer.dump({"ema": network}), tmp_path)


@pytest.mark.parametrize("meta", [{"version": 7}, {"type": "function"}, {"state": None}, {"class_name": 1}])
def test_another_form_of_persistence_is_refused(meta: dict[str, Any], tmp_path: Path) -> None:
    whole = {"type": "class", "version": 6, "module_src": "", "class_name": "Net", "state": {}} | meta
    with pytest.raises(ValueError, match="persisten.* is expected"):
        read(edm_writer.dump({"ema": hostile_files.Call(edm_writer.reconstruct, whole)}), tmp_path)


def test_a_file_cut_at_any_byte_is_one_error(tmp_path: Path) -> None:
    content = _small()
    for length in range(1, len(content)):
        with pytest.raises(ValueError, match=r"network\.pkl: .*expected one of EDM's network pickles"):
            read(content[:length], tmp_path)


def _small() -> bytes:
    """Return a genuine file with little source text in it, so that a random byte is worth damaging."""
    network = edm_writer.network({"weight": np.ones((2, 3), np.float32)}, {"img_resolution": 8})
    content = edm_writer.dump({"ema": network, "augment_pipe": None}, protocol=3)
    source = edm_writer.SOURCE.encode()
    return content.replace(struct.pack("<I", len(source)) + source, struct.pack("<I", 1) + b"x")


@settings(max_examples=400, derandomize=True, deadline=None, database=None)
@given(st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_damaged_file_is_read_or_is_one_error(changes: list[tuple[float, int]]) -> None:
    content = bytearray(_small())
    for place, value in changes:
        content[int(place * len(content))] = value
    with tempfile.TemporaryDirectory() as folder:
        try:
            checkpoint = read(bytes(content), Path(folder))
        except ValueError as error:
            assert "network.pkl: " in str(error)
        else:
            assert all(isinstance(tensor, torch.Tensor) for tensor in checkpoint.state_dict.values())
