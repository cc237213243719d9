"""The Inception-v3 graph of 2015-12-05, on which FID is defined, as a torch network.

Source: Szegedy et al., arXiv:1512.00567, and TensorFlow's graph file, which differs from the common Inception-v3:
average pooling excludes the padding, the last block uses max pooling instead, batch norm has no scale, and there are
1,008 classes. Batch norm is constant, so it is folded into the convolutions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onestep.checkpoints.edm_pickle import read_metric_pickle
from onestep.checkpoints.published_weights import read_published_weights

SIZE = 299
POOL_WIDTH = 2048
CLASSES = 1008
_SPATIAL_CHANNELS = 7  # of 17 x 17 pixels: 2,023 numbers, about as many as the pooled features
_SPATIAL_BLOCK = 6
_EPSILON = 1e-3


@dataclass(frozen=True)
class _Step:
    """A convolution of the graph.

    Attributes:
        name: Name in the graph and in NVIDIA's file.
        alias: Name in torch-fidelity's file.
        channels: Output channels.
        kernel: Height and width.
        stride: Stride in both directions.
        padded: Whether the output at stride 1 has the size of the input.
    """

    name: str
    alias: str
    channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padded: bool = True


# A branch: a sequence of convolutions and poolings; a tuple is a fork into parallel convolutions.
_Branch = tuple[_Step | str | tuple[_Step, ...], ...]

_STEM: _Branch = (
    _Step("conv", "Conv2d_1a_3x3", 32, (3, 3), 2, False),
    _Step("conv_1", "Conv2d_2a_3x3", 32, (3, 3), 1, False),
    _Step("conv_2", "Conv2d_2b_3x3", 64, (3, 3)),
    "halve",
    _Step("conv_3", "Conv2d_3b_1x1", 80),
    _Step("conv_4", "Conv2d_4a_3x3", 192, (3, 3), 1, False),
    "halve",
)


def _fine(pooled: int) -> tuple[_Branch, ...]:
    """Return the branches of a block on maps of 35 x 35."""
    return (
        (_Step("conv", "branch1x1", 64),),
        (_Step("tower.conv", "branch5x5_1", 48), _Step("tower.conv_1", "branch5x5_2", 64, (5, 5))),
        (
            _Step("tower_1.conv", "branch3x3dbl_1", 64),
            _Step("tower_1.conv_1", "branch3x3dbl_2", 96, (3, 3)),
            _Step("tower_1.conv_2", "branch3x3dbl_3", 96, (3, 3)),
        ),
        ("average", _Step("tower_2.conv", "branch_pool", pooled)),
    )


def _fine_to_middle() -> tuple[_Branch, ...]:
    return (
        (_Step("conv", "branch3x3", 384, (3, 3), 2, False),),
        (
            _Step("tower.conv", "branch3x3dbl_1", 64),
            _Step("tower.conv_1", "branch3x3dbl_2", 96, (3, 3)),
            _Step("tower.conv_2", "branch3x3dbl_3", 96, (3, 3), 2, False),
        ),
        ("halve",),
    )


def _middle(inner: int) -> tuple[_Branch, ...]:
    """Return the branches of a block on maps of 17 x 17."""
    flat, tall = (1, 7), (7, 1)
    return (
        (_Step("conv", "branch1x1", 192),),
        (
            _Step("tower.conv", "branch7x7_1", inner),
            _Step("tower.conv_1", "branch7x7_2", inner, flat),
            _Step("tower.conv_2", "branch7x7_3", 192, tall),
        ),
        (
            _Step("tower_1.conv", "branch7x7dbl_1", inner),
            _Step("tower_1.conv_1", "branch7x7dbl_2", inner, tall),
            _Step("tower_1.conv_2", "branch7x7dbl_3", inner, flat),
            _Step("tower_1.conv_3", "branch7x7dbl_4", inner, tall),
            _Step("tower_1.conv_4", "branch7x7dbl_5", 192, flat),
        ),
        ("average", _Step("tower_2.conv", "branch_pool", 192)),
    )


def _middle_to_coarse() -> tuple[_Branch, ...]:
    return (
        (_Step("tower.conv", "branch3x3_1", 192), _Step("tower.conv_1", "branch3x3_2", 320, (3, 3), 2, False)),
        (
            _Step("tower_1.conv", "branch7x7x3_1", 192),
            _Step("tower_1.conv_1", "branch7x7x3_2", 192, (1, 7)),
            _Step("tower_1.conv_2", "branch7x7x3_3", 192, (7, 1)),
            _Step("tower_1.conv_3", "branch7x7x3_4", 192, (3, 3), 2, False),
        ),
        ("halve",),
    )


def _coarse(pooling: str) -> tuple[_Branch, ...]:
    """Return the branches of a block on maps of 8 x 8."""
    return (
        (_Step("conv", "branch1x1", 320),),
        (
            _Step("tower_conv", "branch3x3_1", 384),
            (
                _Step("tower_mixed_conv", "branch3x3_2a", 384, (1, 3)),
                _Step("tower_mixed_conv_1", "branch3x3_2b", 384, (3, 1)),
            ),
        ),
        (
            _Step("tower_1_conv", "branch3x3dbl_1", 448),
            _Step("tower_1_conv_1", "branch3x3dbl_2", 384, (3, 3)),
            (
                _Step("tower_1_mixed_conv", "branch3x3dbl_3a", 384, (1, 3)),
                _Step("tower_1_mixed_conv_1", "branch3x3dbl_3b", 384, (3, 1)),
            ),
        ),
        (pooling, _Step("tower_2_conv", "branch_pool", 192)),
    )


_BLOCKS = (
    ("mixed.", "Mixed_5b.", _fine(32)),
    ("mixed_1.", "Mixed_5c.", _fine(64)),
    ("mixed_2.", "Mixed_5d.", _fine(64)),
    ("mixed_3.", "Mixed_6a.", _fine_to_middle()),
    ("mixed_4.", "Mixed_6b.", _middle(128)),
    ("mixed_5.", "Mixed_6c.", _middle(160)),
    ("mixed_6.", "Mixed_6d.", _middle(160)),
    ("mixed_7.", "Mixed_6e.", _middle(192)),
    ("mixed_8.", "Mixed_7a.", _middle_to_coarse()),
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
        self.blocks = nn.ModuleList(blocks)
        self.output = nn.Linear(channels, CLASSES, bias=False, device="meta")

    def pool(self, images: Tensor) -> Tensor:
        """Return `pool_3`, [B, 2048], of images [B, 3, 299, 299] in [-1, 1]."""
        maps = self.stem(images)
        for block in self.blocks:
            maps = block(maps)
        return maps.mean(dim=(2, 3))

    def spatial(self, images: Tensor) -> Tensor:
        """Return the first 7 channels of `mixed_6/conv`, [B, 2023], in the order height, width, channel."""
        maps = self.stem(images)
        for block in self.blocks[:_SPATIAL_BLOCK]:
            maps = block(maps)
        block = self.blocks[_SPATIAL_BLOCK]
        assert isinstance(block, _Parallel)
        found = block.branches[0](maps)
        return found[:, :_SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)


def read_inception(path: Path) -> InceptionNetwork:
    """Load the network with its published weights; nothing in the file is executed.

    Args:
        path: torch-fidelity's file (`.pth`, or the same as safetensors), or NVIDIA's persistence pickle (`.pkl`).

    Raises:
        ValueError: The file is neither, is damaged, or lacks a tensor.
        OSError: The file cannot be opened.
    """
    tensors = read_metric_pickle(path) if path.suffix == ".pkl" else read_published_weights(path)
    layouts = {"output.weight": _names_in_graph, "fc.weight": _names_in_torch_fidelity}
    output = next((name for name in layouts if name in tensors), None)
    if output is None:
        raise ValueError(
            f"{path}: got neither {' nor '.join(map(repr, layouts))}, expected the Inception network of 2015-12-05 as "
            "published by torch-fidelity (.pth) or NVIDIA (.pkl)"
        )
    source = _Tensors(tensors, path=path)
    network = InceptionNetwork()
    for unit in [part for part in network.modules() if isinstance(part, _Convolution)]:
        weight, bias = _folded(source, layouts[output](unit), shape=tuple(unit.weight.shape))
        unit.weight, unit.bias = nn.Parameter(weight), nn.Parameter(bias)
    network.output.weight = nn.Parameter(source.take(output, (CLASSES, POOL_WIDTH)).float())
    return network.eval().requires_grad_(False)


# Names of the kernel, then of batch norm's scale, shift, mean and variance; None is a missing tensor.
def _names_in_graph(unit: _Convolution) -> list[str | None]:
    return [leaf and f"layers.{unit.name}.{leaf}" for leaf in ("weight", None, "beta", "mean", "var")]


def _names_in_torch_fidelity(unit: _Convolution) -> list[str | None]:
    normalisation = [f"bn.{leaf}" for leaf in ("weight", "bias", "running_mean", "running_var")]
    return [f"{unit.alias}.{leaf}" for leaf in ("conv.weight", *normalisation)]


class _Tensors:
    """The tensors of a file, checked for presence, shape and finite values."""

    def __init__(self, tensors: Mapping[str, Tensor], *, path: Path) -> None:
        self._tensors, self._path = tensors, path

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Return a tensor as float64."""
        tensor = self._tensors.get(name)
        if tensor is None or tuple(tensor.shape) != shape:
            found = "none" if tensor is None else str(list(tensor.shape))
            raise ValueError(f"{self._path}: {name}: got {found}, expected a tensor {list(shape)}. Fix: fetch it again")
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{self._path}: {name}: got numbers that are not finite. Fix: fetch it again")
        return tensor.to(torch.float64)


def _folded(source: _Tensors, names: Sequence[str | None], *, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return weight and bias of a convolution with folded batch norm; computed in float64."""
    kernel, *statistics = names
    weight = source.take(str(kernel), shape)
    channels = shape[:1]
    scale, shift, mean, variance = (
        torch.ones(channels, dtype=torch.float64) if name is None else source.take(name, channels)
        for name in statistics
    )
    factor = scale / (variance + _EPSILON).sqrt()
    return (weight * factor.reshape(-1, 1, 1, 1)).float(), (shift - mean * factor).float()
