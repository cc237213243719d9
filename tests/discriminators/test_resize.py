"""The bilinear resize as matrix products: torch's numbers and gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from onestep.arithmetic import deterministic
from onestep.discriminators._resize import as_products, resized


@pytest.mark.parametrize("corners", [True, False])
@pytest.mark.parametrize(
    ("before", "after"), [((16, 16), (224, 224)), ((14, 9), (28, 18)), ((32, 40), (24, 7)), ((1, 3), (2, 1))]
)
def test_it_has_the_numbers_and_the_gradient_of_torchs(before, after, corners):
    torch.manual_seed(0)
    found = []
    for resize in (
        as_products,
        lambda x, *, size, align_corners: F.interpolate(x, size, None, "bilinear", align_corners),
    ):
        images = torch.randn(2, 3, *before, generator=torch.Generator().manual_seed(1), requires_grad=True)
        made = resize(images, size=after, align_corners=corners)
        slopes = torch.randn(made.shape, generator=torch.Generator().manual_seed(2))
        found.append((made.detach(), *torch.autograd.grad((made * slopes).sum(), images)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_it_is_used_where_deterministic_algorithms_are_asked_for_but_not_on_a_cpu():
    sizes = {"size": (8, 8), "align_corners": False}
    images = torch.randn(1, 1, 4, 4)
    with deterministic(True):
        assert torch.equal(resized(images, **sizes), F.interpolate(images, (8, 8), mode="bilinear"))
        assert resized(images.to("meta"), **sizes).shape == (1, 1, 8, 8)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_its_gradient_is_the_same_twice():
    images = torch.randn(8, 64, 14, 14, device="cuda", requires_grad=True)
    with deterministic(True):
        twice = [
            torch.autograd.grad(resized(images, size=(28, 28), align_corners=True).square().sum(), images)[0]
            for _ in range(2)
        ]
    assert torch.equal(*twice)
