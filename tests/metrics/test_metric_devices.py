"""Where metrics compute: arrays on a GPU that has room for them, tensors where they are."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from onestep.metrics import Statistics
from onestep.metrics._features import device_for, device_record, finite_pair
from onestep.metrics.frechet import FrechetDistance


@pytest.fixture
def gpu(monkeypatch):
    """A GPU of 8 GiB by name."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (2**33, 2**33))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")


def _array(count):
    return np.lib.stride_tricks.as_strided(np.zeros(1, np.float32), (count // 1024, 1024), (0, 0))


@pytest.mark.parametrize(
    ("numbers", "device"), [(2**20, "cpu"), (2**22, "cuda"), (2**27, "cuda"), (2**27 + 1024, "cpu")]
)
@pytest.mark.usefixtures("gpu")
def test_arrays_are_for_the_gpu_if_it_is_worth_it_and_they_fit(numbers, device):
    assert device_for(_array(numbers)).type == device
    assert device_record(_array(numbers)) == ({"device": "a GPU"} if device == "cuda" else {})


@pytest.mark.usefixtures("gpu")
def test_a_tensor_stays_and_takes_the_array_beside_it():
    tensor = torch.zeros(4, 1024)
    assert device_for(_array(2**22), tensor).type == "cpu"
    assert {each.device.type for each in finite_pair(tensor, _array(2**22), least=(1, 1))} == {"cpu"}
    assert device_record(tensor) == {}


def test_statistics_follow_the_features():
    features = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    reference = Statistics(mean=np.zeros(4), covariance=np.eye(4))
    found = FrechetDistance()(generated=features, real=reference)
    assert found == FrechetDistance()(generated=features.numpy(), real=reference)
