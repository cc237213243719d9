"""Features of FID, Inception score, sFID and ADM's precision and recall: the Inception network of 2015-12-05.

Source: Szegedy et al., arXiv:1512.00567, and TensorFlow's graph file, which differs from the common Inception-v3:
average pooling excludes the padding, the last block uses max pooling instead, batch norm has no scale, and there are
1,008 classes. Batch norm is constant, so it is folded into the convolutions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onestep.arithmetic import computing
from onestep.checkpoints.edm_pickle import read_metric_pickle
from onestep.checkpoints.published_weights import read_published_weights
from onestep.features import Features
from onestep.features._networks import resized_as_in_tensorflow, run_in_parts

__all__ = ["InceptionFeatures"]

_SIZE = 299
POOL_WIDTH = 2048
CLASSES = 1008
_SPATIAL_CHANNELS = 7  # of 17 x 17 pixels: 2,023 numbers, about as many as the pooled features
_SPATIAL_BLOCK = 6
_EPSILON = 1e-3


class InceptionFeatures:
    """The features of EDM's FID and of guided-diffusion's evaluator; the resize to 299 x 299 is part of the network.

    `pool` is the pooled layer of width 2,048 (FID, precision and recall), with the class probabilities of the Inception
    score, computed without the bias of the logits as in guided-diffusion. `spatial` is a part of an inner feature map,
    of width 2,023 (sFID, arXiv:2103.03841), without probabilities.
    """

    def __init__(
        self,
        *,
        weights: Path,
        layer: Literal["pool", "spatial"] = "pool",
        precision: Literal["float32", "tf32", "bfloat16"] = "float32",
    ) -> None:
        """Load torch-fidelity's `weights-inception-2015-12-05-6726825d.pth`, or NVIDIA's `.pkl`."""
        self.network = read_inception(weights)
        self.layer, self.precision = layer, precision

    def __call__(self, pixels: Tensor) -> Features:
        """Extract features [B, 2048] and probabilities [B, 1008], or with `spatial` features [B, 2023] only."""
        network = self.network.to(pixels.device)
        layer = network.pool if self.layer == "pool" else network.spatial
        features = run_in_parts(layer, pixels, prepare=prepared, precision=self.precision)
        if self.layer == "spatial":
            return Features(features=features, probabilities=None)
        with computing("float32", device=pixels.device):
            return Features(features=features, probabilities=network.output(features).softmax(dim=1))


def prepared(pixels: Tensor) -> Tensor:
    """Return the network's input of pixels [B, 3, H, W] in [0, 255]: resized to 299 x 299, in about [-1, 1]."""
    return (resized_as_in_tensorflow(pixels, size=_SIZE) - 128) / 128


@dataclass(frozen=True)
class _Step:
    """A convolution of the graph."""

    name: str  # in the graph and in NVIDIA's file
    alias: str  # in torch-fidelity's file
    channels: int  # of the output
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padded: bool = True  # whether the output at stride 1 has the size of the input


# A branch: a sequence of convolutions and poolings; a tuple is a fork into parallel convolutions.
_Branch = tuple[_Step | str | tuple[_Step, ...], ...]

_SQUARE, _FLAT, _TALL = (3, 3), (1, 7), (7, 1)
_HALVING = (_SQUARE, 2, False)
_STEM: _Branch = (
    _Step("conv", "Conv2d_1a_3x3", 32, *_HALVING),
    _Step("conv_1", "Conv2d_2a_3x3", 32, _SQUARE, 1, False),
    _Step("conv_2", "Conv2d_2b_3x3", 64, _SQUARE),
    "halve",
    _Step("conv_3", "Conv2d_3b_1x1", 80),
    _Step("conv_4", "Conv2d_4a_3x3", 192, _SQUARE, 1, False),
    "halve",
)


def _chain(name: str, alias: str, *steps: tuple[Any, ...]) -> tuple[_Step, ...]:
    """Return convolutions in a row from their (channels, kernel, stride, padded), numbered in the publishers' ways."""
    aliases = [f"{alias}_{index + 1}" for index in range(len(steps))] if len(steps) > 1 else [alias]
    return tuple(_Step(f"{name}_{i}" if i else name, aliases[i], *step) for i, step in enumerate(steps))


def _fork(name: str, alias: str) -> tuple[_Step, ...]:
    return _Step(name, f"{alias}a", 384, (1, 3)), _Step(f"{name}_1", f"{alias}b", 384, (3, 1))


def _fine(pooled: int) -> tuple[_Branch, ...]:
    """Return the branches of a block on maps of 35 x 35."""
    return (
        _chain("conv", "branch1x1", (64,)),
        _chain("tower.conv", "branch5x5", (48,), (64, (5, 5))),
        _chain("tower_1.conv", "branch3x3dbl", (64,), (96, _SQUARE), (96, _SQUARE)),
        ("average", _Step("tower_2.conv", "branch_pool", pooled)),
    )


_FINE_TO_MIDDLE: tuple[_Branch, ...] = (
    _chain("conv", "branch3x3", (384, *_HALVING)),
    _chain("tower.conv", "branch3x3dbl", (64,), (96, _SQUARE), (96, *_HALVING)),
    ("halve",),
)


def _middle(inner: int) -> tuple[_Branch, ...]:
    """Return the branches of a block on maps of 17 x 17."""
    long = ((inner,), (inner, _TALL), (inner, _FLAT), (inner, _TALL), (192, _FLAT))
    return (
        _chain("conv", "branch1x1", (192,)),
        _chain("tower.conv", "branch7x7", (inner,), (inner, _FLAT), (192, _TALL)),
        _chain("tower_1.conv", "branch7x7dbl", *long),
        ("average", _Step("tower_2.conv", "branch_pool", 192)),
    )


_MIDDLE_TO_COARSE: tuple[_Branch, ...] = (
    _chain("tower.conv", "branch3x3", (192,), (320, *_HALVING)),
    _chain("tower_1.conv", "branch7x7x3", (192,), (192, _FLAT), (192, _TALL), (192, *_HALVING)),
    ("halve",),
)


def _coarse(pooling: str) -> tuple[_Branch, ...]:
    """Return the branches of a block on maps of 8 x 8."""
    return (
        _chain("conv", "branch1x1", (320,)),
        (_Step("tower_conv", "branch3x3_1", 384), _fork("tower_mixed_conv", "branch3x3_2")),
        (
            *_chain("tower_1_conv", "branch3x3dbl", (448,), (384, _SQUARE)),
            _fork("tower_1_mixed_conv", "branch3x3dbl_3"),
        ),
        (pooling, _Step("tower_2_conv", "branch_pool", 192)),
    )


_BLOCKS = (
    ("mixed.", "Mixed_5b.", _fine(32)),
    ("mixed_1.", "Mixed_5c.", _fine(64)),
    ("mixed_2.", "Mixed_5d.", _fine(64)),
    ("mixed_3.", "Mixed_6a.", _FINE_TO_MIDDLE),
    ("mixed_4.", "Mixed_6b.", _middle(128)),
    ("mixed_5.", "Mixed_6c.", _middle(160)),
    ("mixed_6.", "Mixed_6d.", _middle(160)),
    ("mixed_7.", "Mixed_6e.", _middle(192)),
    ("mixed_8.", "Mixed_7a.", _MIDDLE_TO_COARSE),
    ("mixed_9.", "Mixed_7b.", _coarse("average")),
    ("mixed_10.", "Mixed_7c.", _coarse("max")),
)


class _Convolution(nn.Conv2d):
    """A convolution with folded batch norm, then ReLU."""

    def __init__(self, inputs: int, step: _Step, *, name: str, alias: str) -> None:
        height, width = step.kernel
        padding = (height // 2, width // 2) if step.padded else (0, 0)
        super().__init__(inputs, step.channels, step.kernel, stride=step.stride, padding=padding, device="meta")
        self.name, self.alias = name + step.name, alias + step.alias

    def forward(self, maps: Tensor) -> Tensor:
        return F.relu(super().forward(maps), inplace=True)


class _Parallel(nn.Module):
    """Parallel branches on the same input; their channels are concatenated."""

    def __init__(self, branches: Sequence[nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, maps: Tensor) -> Tensor:
        return torch.cat([branch(maps) for branch in self.branches], dim=1)


def _pooling(kind: str) -> nn.Module:
    if kind == "average":
        return nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)
    return nn.MaxPool2d(3, stride=2) if kind == "halve" else nn.MaxPool2d(3, stride=1, padding=1)


def _sequence(branch: _Branch, *, inputs: int, name: str, alias: str) -> tuple[nn.Sequential, int]:
    """Build a branch; return it and its output channels."""
    parts: list[nn.Module] = []
    for step in branch:
        if isinstance(step, str):
            parts.append(_pooling(step))
        elif isinstance(step, tuple):
            parts.append(_Parallel([_Convolution(inputs, each, name=name, alias=alias) for each in step]))
            inputs = sum(each.channels for each in step)
        else:
            parts.append(_Convolution(inputs, step, name=name, alias=alias))
            inputs = step.channels
    return nn.Sequential(*parts), inputs


class InceptionNetwork(nn.Module):
    """Maps normalised images to pooled or spatial features; built by `read_inception`."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, channels = _sequence(_STEM, inputs=3, name="", alias="")
        blocks = []
        for name, alias, branches in _BLOCKS:
            made = [_sequence(branch, inputs=channels, name=name, alias=alias) for branch in branches]
            blocks.append(_Parallel([part for part, _ in made]))
            channels = sum(count for _, count in made)
        self.blocks = nn.Sequential(*blocks)
        self.output = nn.Linear(channels, CLASSES, bias=False, device="meta")

    def pool(self, images: Tensor) -> Tensor:
        """Return `pool_3`, [B, 2048], of images [B, 3, 299, 299] in [-1, 1]."""
        return self.blocks(self.stem(images)).mean(dim=(2, 3))

    def spatial(self, images: Tensor) -> Tensor:
        """Return the first 7 channels of `mixed_6/conv`, [B, 2023], in the order height, width, channel."""
        block = self.blocks[_SPATIAL_BLOCK]
        assert isinstance(block, _Parallel)
        found = block.branches[0](self.blocks[:_SPATIAL_BLOCK](self.stem(images)))
        return found[:, :_SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)


def read_inception(path: Path) -> InceptionNetwork:
    """Load the network with its published weights; nothing in the file is executed.

    The file is torch-fidelity's (`.pth`, or the same as safetensors), or NVIDIA's persistence pickle (`.pkl`).
    ValueError: it is neither, is damaged, or lacks a tensor; OSError: it cannot be opened.
    """
    tensors = read_metric_pickle(path) if path.suffix == ".pkl" else read_published_weights(path)
    layouts = {"output.weight": _names_in_graph, "fc.weight": _names_in_torch_fidelity}
    output = next((name for name in layouts if name in tensors), None)
    if output is None:
        raise ValueError(
            f"{path}: got neither {' nor '.join(map(repr, layouts))}, expected the Inception network of 2015-12-05 as "
            "published by torch-fidelity (.pth) or NVIDIA (.pkl)"
        )

    def take(name: str, shape: Sequence[int]) -> Tensor:
        tensor = tensors.get(name)
        if tensor is None or tensor.shape != shape:
            found = "none" if tensor is None else str(list(tensor.shape))
            raise ValueError(f"{path}: {name}: got {found}, expected a tensor {list(shape)}. Fix: fetch it again")
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{path}: {name}: got numbers that are not finite. Fix: fetch it again")
        return tensor.to(torch.float64)

    network = InceptionNetwork()
    for unit in [part for part in network.modules() if isinstance(part, _Convolution)]:
        shape = unit.weight.shape
        kernel, *statistics = layouts[output](unit)
        weight = take(str(kernel), shape)
        scale, shift, mean, variance = (
            torch.ones(shape[:1], dtype=torch.float64) if name is None else take(name, shape[:1]) for name in statistics
        )
        factor = scale / (variance + _EPSILON).sqrt()
        unit.weight = nn.Parameter((weight * factor.reshape(-1, 1, 1, 1)).float())
        unit.bias = nn.Parameter((shift - mean * factor).float())
    network.output.weight = nn.Parameter(take(output, (CLASSES, POOL_WIDTH)).float())
    return network.eval().requires_grad_(False)


# Names of the kernel, then of batch norm's scale, shift, mean and variance; None is a missing tensor.
def _names_in_graph(unit: _Convolution) -> list[str | None]:
    return [leaf and f"layers.{unit.name}.{leaf}" for leaf in ("weight", None, "beta", "mean", "var")]


def _names_in_torch_fidelity(unit: _Convolution) -> list[str | None]:
    normalisation = [f"bn.{leaf}" for leaf in ("weight", "bias", "running_mean", "running_var")]
    return [f"{unit.alias}.{leaf}" for leaf in ("conv.weight", *normalisation)]
