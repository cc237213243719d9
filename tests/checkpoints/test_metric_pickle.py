"""NVIDIA's metric networks: a pickle that is one network, read without executing it."""

from __future__ import annotations

import edm_writer
import numpy as np
import pytest
import torch
from torch import nn

from onestep.checkpoints.edm_pickle import read_metric_pickle

_ARRAYS = {
    "layers.conv.weight": np.arange(4 * 3 * 9, dtype=np.float32).reshape(4, 3, 3, 3),
    "layers.conv.beta": np.ones(4, np.float32),
    "layers.conv.mean": np.zeros(4, np.float32),
    "output.weight": np.eye(4, dtype=np.float32),
}


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("container", [None, nn.Sequential, nn.ModuleList])
def test_its_tensors_are_read_by_name(tmp_path, protocol, container):
    network = edm_writer.network(_ARRAYS, {})
    if container is not None:
        layers = container()
        layers.add_module("conv", network._modules["layers"]._modules["conv"])
        network._modules["layers"] = layers
    path = tmp_path / "inception-2015-12-05.pkl"
    path.write_bytes(edm_writer.dump(network, protocol=protocol))
    found = read_metric_pickle(path)
    assert list(found) == list(_ARRAYS)
    assert all(torch.equal(found[name], torch.from_numpy(array)) for name, array in _ARRAYS.items())


def test_a_checkpoint_or_a_foreign_name_is_refused(tmp_path):
    path = tmp_path / "inception.pkl"
    path.write_bytes(edm_writer.dump({"ema": edm_writer.network(_ARRAYS, {})}))
    with pytest.raises(
        ValueError, match=r"inception\.pkl: the file holds a value of type dict, not a network; expected"
    ):
        read_metric_pickle(path)
    path.write_bytes(edm_writer.dump(print))
    with pytest.raises(ValueError, match=r"names the global '.*print'.*nothing was run"):
        read_metric_pickle(path)
