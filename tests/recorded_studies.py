"""Recordings of the papers' studies and of objectives (subfolders of the recordings), and their small networks."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from onestep.networks import Preconditioned


def studies_of(golden: Any) -> Any:
    """Return the recordings of studies beside others; skip the test where there are none."""
    return _beside(golden, "studies")


def objectives_of(golden: Any) -> Any:
    """Return the recordings of objectives beside others; skip the test where there are none."""
    return _beside(golden, "objectives")


def _beside(golden: Any, name: str) -> Any:
    folder = golden.folder / name
    if not (folder / "manifest.json").exists():
        pytest.skip(f"{folder}: no recordings of {name}")
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


class Replayed:
    """Random streams that repeat recorded draws in their order, whatever their kind."""

    def __init__(self, *draws: torch.Tensor) -> None:
        self.draws = list(draws)

    def normal(self, *shape: int) -> torch.Tensor:
        """Return the next draw."""
        found = self.draws.pop(0)
        assert found.shape[1:] == shape
        return found

    uniform = normal


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


class StandIn(nn.Module):
    """The recorded encoder with inner maps at full, half and quarter resolution, called as a denoiser is for maps."""

    def __init__(self, weights: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.weights = nn.ParameterDict({name.replace(".", "_"): value.clone() for name, value in weights.items()})

    def forward(self, x, sigma, condition=None, *, maps, force_fp32=False):
        def convolved(name, y, stride):
            return F.conv2d(y, self.weights[f"{name}_weight"], self.weights[f"{name}_bias"], stride=stride, padding=1)

        assert maps == "only"
        sigma = sigma.to(x.dtype)
        level = F.linear(sigma.log()[:, None] / 4, self.weights["t_weight"], self.weights["t_bias"])
        scaled = x / (sigma**2 + 0.25).sqrt()[:, None, None, None]
        first = (convolved("a", scaled, 1) + level[:, :, None, None]).tanh()
        second = convolved("b", first, 2).tanh()
        return first, second, convolved("c", second, 2).tanh()


def load_heads(heads: nn.Module, weights: dict[str, torch.Tensor], *, groups: int | None = None) -> None:
    """Load recorded heads; their normalisations may have another number of groups."""
    heads.load_state_dict(weights, strict=True)
    for part in heads.modules():
        if isinstance(part, nn.GroupNorm) and groups is not None:
            part.num_groups = groups
