"""Recordings of the papers' studies (subfolder `studies` of the recordings), and the small networks that they use."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn

from onestep.networks import Preconditioned


def studies_of(golden: Any) -> Any:
    """Return the recordings of studies beside others; skip the test where there are none."""
    folder = golden.folder / "studies"
    if not (folder / "manifest.json").exists():
        pytest.skip(f"{folder}: no recordings of studies")
    return type(golden)(folder)


def constants(recorded: Any, name: str) -> dict:
    """Return the constants of a file."""
    return recorded.manifest["files"][name]["constants"]


def tolerance(recorded: Any, name: str, pattern: str) -> float:
    """Return the number that `pattern` captures in the words on a file's tolerances."""
    words = recorded.manifest["files"][name]["tol"]
    found = re.search(pattern, words)
    assert found, f"no {pattern!r} in {words!r}"
    return float(found[1])


def tensors(arrays: dict, prefix: str = "") -> dict[str, torch.Tensor]:
    """Return the arrays below a prefix as tensors."""
    return {
        key.removeprefix(prefix): torch.from_numpy(value) for key, value in arrays.items() if key.startswith(prefix)
    }


class Probe(nn.Module):
    """W2 tanh(W1 x + b1 + a1 c + e1 d) + b2 of each pixel x; c describes the noise level, d the next one if given."""

    def __init__(self, weights: dict[str, torch.Tensor]) -> None:
        super().__init__()
        for name, value in weights.items():
            setattr(self, name, nn.Parameter(value.clone()))

    def forward(self, x, noise, condition=None):
        inner = torch.einsum("oc,bchw->bohw", self.W1, x) + self.b1[:, None, None]
        inner = inner + self.a1[:, None, None] * noise[:, None, None, None]
        if condition is not None:
            inner = inner + self.e1[:, None, None] * condition[:, :, None, None]
        return torch.einsum("co,bohw->bchw", self.W2, inner.tanh()) + self.b2[:, None, None]


def denoiser(arrays: dict, owner: str, *, law: str, times: int = 1, resolution: int) -> Preconditioned:
    """Return the denoiser of a recorded network; one of two `times` gets ln(next sigma) / 4 as its condition [B, 1]."""
    return Preconditioned(
        Probe(tensors(arrays, f"{owner}/")),
        preconditioning=law,
        img_resolution=resolution,
        img_channels=3,
        label_dim=times - 1,
    )


def assert_close(found, wanted, *, share: float, what: str) -> None:
    """Compare to a share of the largest recorded number."""
    wanted = torch.as_tensor(wanted)
    assert found.shape == wanted.shape, what
    error = (found.detach().double() - wanted.double()).abs().max() / wanted.abs().max()
    assert error <= share, f"{what}: {error:.2e} of the largest, expected {share}"
