"""The trained heads of a projected discriminator: one small convolutional discriminator per feature map.

Sources: Projected GANs (arXiv:2111.01007); class conditioning by projection (arXiv:1802.05637) as in StyleGAN-XL
(arXiv:2202.00273). Names and sizes as in the D2O reference.
Legend: B images, C H W a feature map, K classes, E width of a class embedding, N logits per image.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onestep.arithmetic import half_products

_SLOPE = 0.2  # of every LeakyReLU
_EPSILON = 1e-12  # smallest norm of a vector of the power iteration
_KERNEL = 4  # of every convolution
_CONDITION_WIDTH = 64  # channels of the projection on the class


Vectors = tuple[Tensor, Tensor]
"""The vectors u [out] and v [rest] of one power iteration."""


class SpectralConv2d(nn.Module):
    """A 4x4 convolution whose weight, as a matrix [out, rest], is divided by its largest singular value.

    One power iteration per forward in training mode estimates the value (arXiv:1802.05957, algorithm 1); gradients pass
    through the weight, not through the vectors.
    State dict: `weight_orig`, `weight_u`, `weight_v`, `bias`, as in `torch.nn.utils.spectral_norm`.
    """

    weight_u: Tensor
    weight_v: Tensor

    def __init__(self, channels_in: int, channels_out: int, *, stride: int, padding: int, bias: bool) -> None:
        super().__init__()
        initial = nn.Conv2d(channels_in, channels_out, kernel_size=_KERNEL, bias=bias)
        self.stride, self.padding = stride, padding
        self.weight_orig = initial.weight
        self.bias = initial.bias
        self.register_buffer("weight_u", _unit(torch.randn(channels_out)))
        self.register_buffer("weight_v", _unit(torch.randn(channels_in * _KERNEL**2)))

    def forward(self, features: Tensor, weight: Tensor | None = None) -> Tensor:
        """Convolve [B, in, H, W] with the divided `weight` of `divided_weights`; None iterates and divides here."""
        if weight is None:
            (weight,), vectors = divided_weights([self], vectors_of([self]))
            keep_vectors([self], vectors)
        return F.conv2d(features, weight, self.bias, stride=self.stride, padding=self.padding)


def vectors_of(convolutions: Sequence[SpectralConv2d]) -> list[Vectors]:
    """Return the current vectors of each convolution."""
    return [(each.weight_u, each.weight_v) for each in convolutions]


@torch.no_grad()
def keep_vectors(convolutions: Sequence[SpectralConv2d], vectors: Sequence[Vectors]) -> None:
    """Store vectors after an iteration."""
    old = [vector for pair in vectors_of(convolutions) for vector in pair]
    torch._foreach_copy_(old, [vector for pair in vectors for vector in pair])


def divided_weights(
    convolutions: Sequence[SpectralConv2d], vectors: Sequence[Vectors], *, together: bool | None = None
) -> tuple[list[Tensor], list[Vectors]]:
    """Return the weight of each convolution divided by its singular value, and the vectors after an iteration.

    Nothing is changed in place, so that this can be compiled and recorded. Matrices of one shape are iterated
    `together`, by default on all devices but a CPU: it takes a fraction of the kernels, and rounds differently.
    """
    device = convolutions[0].weight_orig.device
    # In float32 whatever the convolutions' type: the singular value divides every weight.
    with half_products(device, enabled=False):
        if device.type != "cpu" if together is None else together:
            found = _divided_together(convolutions, vectors)
        else:
            found = [_divided(each, *pair) for each, pair in zip(convolutions, vectors, strict=True)]
    return [weight for weight, _ in found], [pair for _, pair in found]


def _divided(convolution: SpectralConv2d, u: Tensor, v: Tensor) -> tuple[Tensor, Vectors]:
    matrix = convolution.weight_orig.flatten(1)
    if convolution.training:
        with torch.no_grad():
            v = _unit(torch.mv(matrix.t(), u))
            u = _unit(torch.mv(matrix, v))
    # Without an iteration copies, because a later one changes the stored vectors before this backward reads them.
    a, b = (u, v) if convolution.training else (u.clone(), v.clone())
    return convolution.weight_orig / torch.dot(a, torch.mv(matrix, b)), (u, v)


def _divided_together(
    convolutions: Sequence[SpectralConv2d], vectors: Sequence[Vectors]
) -> list[tuple[Tensor, Vectors]]:
    alike: dict[tuple[int, ...], list[int]] = {}
    for index, each in enumerate(convolutions):
        alike.setdefault((*each.weight_orig.shape, each.training), []).append(index)
    found: dict[int, tuple[Tensor, Vectors]] = {}
    for (*shape, training), indices in alike.items():
        matrices = torch.stack([convolutions[index].weight_orig.flatten(1) for index in indices])  # [n, out, rest]
        u, v = (torch.stack([vectors[index][side] for index in indices]) for side in (0, 1))
        if training:
            # Sums of products: a matrix product would round to TF32 where the rest of the training may.
            with torch.no_grad():
                v = _unit((matrices * u[:, :, None]).sum(dim=1))
                u = _unit((matrices * v[:, None, :]).sum(dim=2))
        values = (u * (matrices * v[:, None, :]).sum(dim=2)).sum(dim=1)
        divided = (matrices / values[:, None, None]).unflatten(2, shape[1:])
        for index, weight, *pair in zip(indices, divided.unbind(), u.unbind(), v.unbind(), strict=True):
            found[index] = weight, (pair[0], pair[1])
    return [found[index] for index in range(len(convolutions))]


def _unit(vectors: Tensor) -> Tensor:
    return F.normalize(vectors, dim=-1, eps=_EPSILON)


def _run(layers: nn.Module, features: Tensor, weights: Iterator[Tensor]) -> Tensor:
    """Run the layers of a head with the next ones of the divided weights."""
    for layer in layers.children():
        if isinstance(layer, SpectralConv2d):
            features = layer(features, next(weights))
        elif isinstance(layer, nn.Sequential):
            features = _run(layer, features, weights)
        else:
            features = layer(features)
    return features


def _downs(widths: Sequence[int]) -> list[nn.Module]:
    """Return downsamplings by two: convolution, batch norm, LeakyReLU.

    A batch norm normalises over the images of one call on one rank, as in the reference: generated and real images
    separately.
    """
    downs: list[nn.Module] = []
    for before, after in pairwise(widths):
        convolution = SpectralConv2d(before, after, stride=2, padding=1, bias=True)
        main = nn.Sequential(convolution, nn.BatchNorm2d(after), nn.LeakyReLU(_SLOPE))
        downs.append(nn.Sequential(OrderedDict(main=main)))  # for the reference's names
    return downs


class Head(nn.Module):
    """Downsampling to the end size, then a 4x4 convolution without padding to one channel of logits.

    `widths` are the channels of the input and after each downsampling.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.main = nn.Sequential(*_downs(widths), SpectralConv2d(widths[-1], 1, stride=1, padding=0, bias=False))

    def forward(self, features: Tensor, condition: Tensor | None, weights: Iterator[Tensor]) -> Tensor:
        """Return logits [B, h w] of a feature map [B, C, H, W]; the condition is not used."""
        return _run(self.main, features, weights).flatten(1)


class ConditionalHead(nn.Module):
    """A head whose logits are inner products of 64 channels with a vector of the class.

    Each head trains its own class table, initially `embedding` [K, E].
    """

    def __init__(self, widths: Sequence[int], *, embedding: Tensor) -> None:
        super().__init__()
        self.main = nn.Sequential(*_downs(widths))
        self.cls = SpectralConv2d(widths[-1], _CONDITION_WIDTH, stride=1, padding=0, bias=False)
        self.embed = nn.Embedding.from_pretrained(embedding.clone(), freeze=False)
        self.embed_proj = _EqualizedLinear(embedding.shape[1], _CONDITION_WIDTH)

    def forward(self, features: Tensor, condition: Tensor, weights: Iterator[Tensor]) -> Tensor:
        """Return logits [B, h w] of a feature map [B, C, H, W] and a condition, one-hot [B, K]."""
        with half_products(features.device, enabled=False):
            vectors = self.embed_proj(self.embed(condition.argmax(dim=1)))
        maps = self.cls(_run(self.main, features, weights), next(weights)).to(vectors.dtype)
        return (maps * vectors[:, :, None, None]).sum(dim=1).flatten(1) / math.sqrt(_CONDITION_WIDTH)


class _EqualizedLinear(nn.Module):
    """A fully connected layer with equalized learning rate (arXiv:1710.10196, section 4.1), then LeakyReLU."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width_out, width_in))
        self.bias = nn.Parameter(torch.zeros(width_out))

    def forward(self, vectors: Tensor) -> Tensor:
        gain = 1 / math.sqrt(self.weight.shape[1])
        return F.leaky_relu(F.linear(vectors, self.weight * gain, self.bias), _SLOPE) * math.sqrt(2)


class MultiScaleHeads(nn.Module):
    """One head for each of the mixed feature maps, all with the same end size; state dict: see `Projected`."""

    def __init__(
        self,
        *,
        in_channels: Sequence[int],
        resolutions: Sequence[int],
        channels: int,
        embedding: Tensor | None,
        first: int = 0,
    ) -> None:
        """Draw the weights.

        `in_channels` and `resolutions` are the maps' channels and nominal sizes from fine to coarse: powers of two,
        each half the one before. A map may be smaller: the reference sizes heads for images of 256 pixels and runs
        them on 224. A head has at each size the width of the maps (`channels` 64: 64, 64, 128, 256, 512). `embedding`
        is the initial class table [K, E]; None for unconditional heads. Maps before number `first` have no head.
        """
        super().__init__()
        self.resolutions = tuple(resolutions)
        self.mini_discs = nn.ModuleList()
        last = int(math.log2(resolutions[0] // end_resolution(resolutions[-1])))
        for map_channels, resolution in list(zip(in_channels, resolutions, strict=True))[first:]:
            start = int(math.log2(resolutions[0] // resolution))
            widths = [map_channels, *(channels << max(level - 1, 0) for level in range(start + 1, last + 1))]
            self.mini_discs.append(Head(widths) if embedding is None else ConditionalHead(widths, embedding=embedding))

    def forward(
        self, features: Sequence[Tensor], condition: Tensor | None, weights: Iterator[Tensor] | None = None
    ) -> Tensor:
        """Return logits [B, N]: the maps of the heads, concatenated from fine to coarse.

        `weights` are the divided weights of the convolutions in their order; None iterates and divides here.
        """
        if weights is None:
            convolutions = spectral_convolutions(self)
            divided, vectors = divided_weights(convolutions, vectors_of(convolutions))
            keep_vectors(convolutions, vectors)
            weights = iter(divided)
        heads = zip(self.mini_discs, features, strict=True)
        return torch.cat([head(maps, condition, weights) for head, maps in heads], dim=1)


def spectral_convolutions(heads: nn.Module) -> list[SpectralConv2d]:
    """Return the convolutions of heads in the order in which they are called."""
    return [part for part in heads.modules() if isinstance(part, SpectralConv2d)]


def end_resolution(coarsest: int) -> int:
    """Return the nominal end size of the heads: 8 as published, 4 if the coarsest map is 8 or smaller."""
    return 8 if coarsest > 8 else _KERNEL


def logits_of(sizes: Sequence[int], *, resolutions: Sequence[int], first: int = 0) -> int:
    """Return N for maps of the true `sizes`, from number `first` on, and heads of nominal `resolutions`.

    ValueError: A map is too small.
    """
    end = end_resolution(resolutions[-1])
    shrink = [max(1, resolution // end) for resolution in resolutions]
    edges = [size // factor - _KERNEL + 1 for size, factor in zip(sizes, shrink, strict=True)][first:]
    if min(edges) < 1:
        raise ValueError(
            f"resolution: got feature maps of {list(sizes)} pixels, too small for the heads' last convolution "
            f"({_KERNEL}x{_KERNEL}). Fix: a higher resolution"
        )
    return sum(edge * edge for edge in edges)
