"""The layers against other ways to compute the same."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from onestep.networks._layers import (
    Conv2d,
    GroupNorm,
    Init,
    Linear,
    downsample,
    low_pass,
    positional_angles,
    upsample,
)
from onestep.networks._unet import attend, fused_attention, plain_attention

_ON_A_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=_ON_A_GPU)])
@pytest.mark.parametrize(("dtype", "share"), [(torch.float32, 1e-4), (torch.bfloat16, 0.03)])
@pytest.mark.parametrize("width", [64, 256])  # of ADM's heads, and of NCSN++'s only head
def test_one_kernel_gives_results_and_gradients_of_plain_attention(device, dtype, share, width):
    parts = torch.randn(3, 2, 2, width, 64, generator=torch.Generator().manual_seed(0))
    slope = torch.randn(2, 2, width, 64, generator=torch.Generator().manual_seed(1))
    exact = _result_and_gradients(plain_attention, parts.double(), slope.double())
    found = _result_and_gradients(fused_attention, parts.to(device, dtype), slope.to(device, dtype))
    for one, other in zip(found, exact, strict=True):
        assert one.dtype == dtype and (one.cpu().double() - other).norm() < share * other.norm()


def _result_and_gradients(attend, parts, slope):
    query, key, value = (part.clone().requires_grad_() for part in parts)
    result = attend(query, key, value)
    return result.detach(), *torch.autograd.grad(result, (query, key, value), slope)


@pytest.mark.parametrize("heads", [1, 3])
def test_both_ways_to_attend_agree(heads):
    parts = torch.randn(3, 2, heads, 5, 16, generator=torch.Generator().manual_seed(0))
    plain, fused = plain_attention(*parts), fused_attention(*parts)
    assert torch.allclose(plain, fused, atol=1e-6)
    assert plain.is_contiguous() and fused.is_contiguous()


def test_attention_reads_triples_head_by_head():
    query, key, value = torch.randn(3, 2, 2, 5, 16, generator=torch.Generator().manual_seed(0))
    qkv = torch.stack([query, key, value], dim=3).reshape(2, 30, 4, 4)
    expected = torch.empty_like(value)
    for row in range(2):
        for head in range(2):
            weights = (query[row, head].T @ key[row, head] / math.sqrt(5)).softmax(dim=1)
            expected[row, head] = value[row, head] @ weights.T
    assert torch.allclose(attend(qkv, heads=2), expected.reshape(2, 10, 4, 4), atol=1e-6)


def test_the_shortcut_for_the_box_filter_is_the_filter():
    x, box = torch.randn(2, 3, 8, 8), low_pass([1, 1])
    resampled = {
        way: Conv2d(3, 3, kernel=0, resample=way, resample_filter=(1, 1), init=Init())(x) for way in ("up", "down")
    }
    assert torch.allclose(resampled["up"], upsample(x, box), atol=1e-6)
    assert torch.allclose(resampled["down"], downsample(x, box), atol=1e-6)


@pytest.mark.parametrize("taps", [[1, 1], [1, 3, 3, 1]])
def test_resampling_keeps_a_flat_image_flat(taps):
    x = torch.full((1, 2, 8, 8), 3.0)
    inner = slice(2, -2)
    assert torch.allclose(upsample(x, low_pass(taps))[..., inner, inner], torch.tensor(3.0))
    assert torch.allclose(downsample(x, low_pass(taps))[..., 1:-1, 1:-1], torch.tensor(3.0))


def test_convolving_before_downsampling_keeps_the_border_of_the_convolution():
    layer = Conv2d(
        2, 4, kernel=3, resample="down_last", resample_filter=(1, 3, 3, 1), init=Init("xavier_uniform", bias=1.0)
    )
    x = torch.randn(1, 2, 8, 8)
    padded = F.conv2d(F.pad(x, (2, 2, 2, 2)), layer.weight)
    expected = downsample(padded, layer.resample_filter, padding=0) + layer.bias[:, None, None]
    assert layer(x).shape == (1, 4, 4, 4)
    assert torch.allclose(layer(x), expected, atol=1e-6)


def test_normalisation_is_float32_inside_whatever_comes_in():
    norm, x = GroupNorm(8, eps=1e-6), 300 + torch.randn(2, 8, 4, 4)
    half = norm(x.to(torch.bfloat16))
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, norm(x.to(torch.bfloat16).to(torch.float32)).to(torch.bfloat16))


def test_frequencies_reach_the_end_if_asked():
    assert positional_angles(torch.ones(1), count=4, endpoint=True)[0, -1].item() == pytest.approx(1e-4)
    assert positional_angles(torch.ones(1), count=4, endpoint=False)[0, -1].item() == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("law", "variance"), [("xavier_uniform", 2 / 800), ("kaiming_uniform", 1 / 300), ("kaiming_normal", 1 / 300)]
)
def test_weights_are_drawn_with_the_variance_of_their_law(law, variance):
    torch.manual_seed(0)
    layer = Linear(300, 500, init=Init(law, weight=2.0, bias=0.5))
    assert layer.weight.var().item() == pytest.approx(4 * variance, rel=0.02)
    assert layer.bias.var().item() == pytest.approx(0.25 * variance, rel=0.2)
    assert Linear(300, 500, init=Init(law)).bias.abs().max() == 0
