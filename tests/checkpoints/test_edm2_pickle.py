"""EDM2's pickles: networks with the arrays of an encoder beside them, statistics; arrays that are not as numpy's."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import edm_writer
import hostile_files
import numpy as np
import pytest
import torch

from onestep.checkpoints.conversion import convert_edm_pickle
from onestep.checkpoints.edm_pickle import read_edm_pickle, read_statistics_pickle
from onestep.checkpoints.snapshot import read_snapshot
from onestep.checkpoints.verbs import convert
from onestep.init.teacher import examine_teacher
from onestep.networks import build_denoiser, load_denoiser

_CONFIG = {"img_resolution": 8, "img_channels": 3, "label_dim": 3, "model_channels": 8, "channel_mult": [1, 2]}
_CONFIG |= {"num_blocks": 1, "attn_resolutions": [], "channels_per_head": 8, "logvar_channels": 4}


def published(**beside: Any) -> dict[str, Any]:
    """Return what EDM2 saves: a network in float16 with its estimate of the loss, and an encoder with arrays."""
    own = {key: value for key, value in _CONFIG.items() if key != "logvar_channels"}
    torch.manual_seed(3)
    state = build_denoiser({"name": "edm2", **own}).state_dict()
    arrays = {f"unet.{name.removeprefix('model.')}": tensor.half().numpy() for name, tensor in state.items()}
    arrays |= {f"logvar_fourier.{name}": np.ones(4, np.float16) for name in ("freqs", "phases")}
    network = edm_writer.network(arrays | {"logvar_linear.weight": np.ones((1, 4), np.float16)}, _CONFIG)
    network.class_name = "Precond"
    encoder = edm_writer.PersistentModule("StabilityVAEEncoder", vae_name="none")
    encoder.scale, encoder.bias = np.float32([0.1, 0.2, 0.3, 0.4]), np.zeros(4, np.float32)
    return {"ema": network, "encoder": encoder, "dataset_kwargs": edm_writer.EasyDict(use_labels=True), **beside}


@pytest.mark.parametrize("is_old", [False, True])
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_network_of_edm2_becomes_a_teacher(is_old: bool, protocol: int, tmp_path: Path) -> None:
    content = edm_writer.dump(published(), protocol=protocol)
    source, weights = tmp_path / "edm2.pkl", tmp_path / "teacher.safetensors"
    source.write_bytes(edm_writer.with_old_names(content) if is_old else content)
    assert convert(source=source, output=weights) == 0
    teacher, original = read_snapshot(weights), read_edm_pickle(source)
    assert teacher.config["name"] == "edm2"
    assert teacher.config["preconditioning"] == "edm" and "logvar_channels" not in teacher.config
    for name, tensor in original.state_dict.items():
        if not name.startswith("logvar_"):
            assert torch.equal(teacher.state_dict[f"model.{name.removeprefix('unet.')}"], tensor)
    network = load_denoiser(weights)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    assert network(torch.ones(1, 3, 8, 8), 1.0).isfinite().all()
    found = examine_teacher(str(source), folder=tmp_path)
    assert (found.architecture, found.resolution, found.channels, found.classes) == ("edm2", 8, 3, 3)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    document = published()
    document["ema"].unet.out_gain.data.fill_(float("inf"))
    (tmp_path / "edm2.pkl").write_bytes(edm_writer.dump(document))
    with pytest.raises(ValueError, match="edm2.pkl: .*model.out_gain"):
        convert_edm_pickle(tmp_path / "edm2.pkl", weights=tmp_path / "t", architecture=tmp_path / "t.yaml")


def reduced(shape: Any = (2,), code: str = "f4", raw: bytes = bytes(8), *, order: str = "<", more: Any = False) -> Any:
    """Return what pickles as an array of numpy with such a state."""
    dtype = _Made(np.dtype, (code, False, True), (3, order, None, None, None, -1, -1, 0))
    return _Made(np._core.multiarray._reconstruct, (np.ndarray, (0,), b"b"), (1, shape, dtype, more, raw))


class _Made:
    def __init__(self, function: Any, arguments: tuple[Any, ...], state: Any) -> None:
        self.parts = function, arguments, state

    def __reduce__(self) -> tuple[Any, ...]:
        return self.parts


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (reduced(raw=bytes(7)), "sets the state"),
        (reduced((2**40, 2**40)), "sets the state"),
        (reduced((-2,)), "sets the state"),
        (reduced((True, 2)), "sets the state"),
        (reduced((2.0,)), "sets the state"),
        (reduced(2), "sets the state"),
        (reduced((1,) * 40 + (2,)), "sets the state"),
        (reduced(more=True), "sets the state"),
        (reduced(raw="a text"), "sets the state"),
        (reduced((1,), "O8"), "number type of numpy"),
        (reduced((1,), "U2"), "number type of numpy"),
        (reduced((4,), "i2"), "sets the state"),
        (reduced((8,), "u1"), "sets the state"),
        (reduced((2,), order=">>"), "sets the state"),
        (hostile_files.Call(np._core.multiarray._reconstruct, np.ndarray, (3,), b"b"), "not made as numpy makes it"),
        (hostile_files.Call(np._core.multiarray._reconstruct, torch.Size, (0,), b"b"), "not made as numpy makes it"),
        (np.array(["texts"], dtype=object), "number type of numpy"),
        (np.ma.masked_array([1.0]), "names the global"),
        (np.datetime64("2020-01-01"), "number type of numpy|names the global"),
    ],
)
def test_arrays_that_are_not_plain_numbers_are_refused(array: Any, message: str, tmp_path: Path) -> None:
    for name, document in (("network", published(more=array)), ("statistics", {"fid": {"mu": array, "sigma": array}})):
        path = tmp_path / f"{name}.pkl"
        path.write_bytes(edm_writer.dump(document))
        with pytest.raises(ValueError, match=f"{name}.pkl: .*({message})") as refused:
            (read_edm_pickle if name == "network" else read_statistics_pickle)(path)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("dtype", ["<f8", ">f8", "<f4", "<i8"])
def test_statistics_come_back_as_saved(dtype: str, tmp_path: Path) -> None:
    mu, sigma = np.arange(3).astype(dtype), np.eye(3).astype(dtype)
    path = tmp_path / "img64.pkl"
    both = {"num_images": 5, "fid": {"mu": mu, "sigma": sigma}, "fd_dinov2": {"mu": mu[:2], "sigma": sigma[:2, :2]}}
    path.write_bytes(pickle.dumps(both, protocol=4))
    found = read_statistics_pickle(path)
    assert found.keys() == {"mu", "sigma", "mu_dinov2", "sigma_dinov2"}
    assert np.array_equal(found["sigma"], sigma) and np.array_equal(found["mu_dinov2"], mu[:2])
    assert found["mu"].dtype == np.dtype(dtype).newbyteorder("=") and found["mu"].flags.writeable


@pytest.mark.parametrize(
    "document", [{}, {"fid": None}, {"fid": {"mu": 1.0, "sigma": 2.0}}, [1], {"fid": {"mu": np.ones(2)}}]
)
def test_statistics_of_another_form_are_refused(document: Any, tmp_path: Path) -> None:
    path = tmp_path / "statistics.pkl"
    path.write_bytes(pickle.dumps(document, protocol=4))
    with pytest.raises(ValueError, match="statistics.pkl: .*expected the statistics of a dataset"):
        read_statistics_pickle(path)
