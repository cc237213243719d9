"""D2O through a projected discriminator: both ways to the penalty's gradient, and one pass for two."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from onestep.classifiers import build_classifier
from onestep.discriminators._backbones import Backbone, ClassifierTaps
from onestep.discriminators.projected import Projected
from onestep.objectives import Batch
from onestep.objectives.d2o import D2O

_ROWS = 6


class Steps(nn.Module):
    """A network whose four taps follow each other, each half the size of the one before."""

    def __init__(self, *steps):
        super().__init__()
        self.steps = nn.ModuleList(steps)

    def forward(self, images):
        taps = [self.steps[0](images)]
        for step in self.steps[1:]:
            taps.append(step(taps[-1]))
        return tuple(taps)


class Attention(nn.Module):
    """Torch's attention over the pixels of a map, between a layer norm and a GELU."""

    def __init__(self, width):
        super().__init__()
        self.norm, self.mix = nn.LayerNorm(width), nn.Linear(width, 3 * width)

    def forward(self, maps):
        tokens = maps.flatten(2).transpose(1, 2)
        query, key, value = self.mix(self.norm(tokens))[:, None].chunk(3, dim=-1)
        mixed = F.gelu(F.scaled_dot_product_attention(query, key, value)[:, 0])
        return mixed.transpose(1, 2).unflatten(2, maps.shape[2:])


def _small_classifier():
    return ClassifierTaps(
        build_classifier({"name": "convnet", "resolution": 16, "channels": 1, "classes": 3, "width": 4})
    )


def _normalised():
    def stage(before, *down):
        norms = (nn.BatchNorm2d(8), nn.SiLU(), nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Softplus())
        return nn.Sequential(*down, nn.Conv2d(before, 8, 3, padding=1), *norms)

    down = nn.Upsample(scale_factor=0.5, mode="bilinear", align_corners=False)
    return Steps(stage(1), stage(8, nn.AvgPool2d(2)), stage(8, down), stage(8, nn.MaxPool2d(2)))


def _attending():
    halves = [nn.Sequential(nn.Conv2d(8, 8, 2, stride=2), Attention(8)) for _ in range(3)]
    return Steps(nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.SiLU()), *halves)


_NETWORKS = {
    "classifier": (_small_classifier, (4, 8, 8, 8)),
    "norms and pools": (_normalised, (8, 8, 8, 8)),
    "attention": (_attending, (8, 8, 8, 8)),
}


def _discriminator(network, *, classes=0):
    torch.manual_seed(2)
    build, taps = _NETWORKS[network]
    backbone = Backbone(build(), channels=1, tap_channels=taps, strides=(1, 2, 4, 8), mean=(0.4,), std=(0.3,))
    return Projected(backbones={"one": backbone}, channels=4, resolution=16, classes=classes, seed=3).train()


def _images(seed, *, size=16):
    return torch.rand(_ROWS, 1, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def _batch(*, classes=0, size=16):
    labels = F.one_hot(torch.arange(_ROWS) % classes, classes).float() if classes else None
    return Batch(images=_images(0, size=size), condition=labels, random=Noise(), images_seen=0)


class Noise:
    """The same noise at every draw."""

    def normal(self, *shape):
        return torch.randn(_ROWS, *shape, generator=torch.Generator().manual_seed(4))


class Shrink(nn.Module):
    """A generator that makes images of the noise itself."""

    def forward(self, noisy, sigma, labels):
        return (noisy / sigma[:, None, None, None]).tanh()


def _objective(**changes):
    options = {"loss": "non_saturating", "sigma": 80.0, "rows_per_rank": 4.0, "r1_gamma": 0.1, "r1_every": 16}
    return D2O(**(options | changes))


def _descended(loss, discriminator):
    """Return the loss, all gradients and all buffers after one backward pass."""
    loss.value.backward()
    gradients = {name: p.grad.clone() for name, p in discriminator.named_parameters() if p.grad is not None}
    return loss, gradients, {name: buffer.clone() for name, buffer in discriminator.named_buffers()}


def _penalty(network, *, gradient, classes=0, size=16):
    discriminator = _discriminator(network, classes=classes)
    objective = _objective(r1_gradient=gradient)
    return _descended(
        objective.r1_loss({"discriminator": discriminator}, _batch(classes=classes, size=size)), discriminator
    )


def _assert_equal_to_1e_5(found, wanted):
    """Each tensor to 1e-5 of its own length; one that is rounding alone, to 1e-5 of the longest one's."""
    scale = max(value.norm() for value in wanted.values())
    for name, value in wanted.items():
        apart = (found[name] - value).norm()
        # A bias before a batch norm has no effect, so its gradient is rounding.
        assert apart <= 1e-5 * (value.norm() if value.norm() > 1e-4 * scale else scale), name


@pytest.mark.parametrize(
    ("network", "classes", "size"), [("classifier", 0, 16), ("classifier", 3, 24), ("norms and pools", 0, 16)]
)
def test_forward_mode_has_value_and_gradients_of_the_double_backward(network, classes, size):
    wanted, found = (
        _penalty(network, gradient=gradient, classes=classes, size=size)
        for gradient in ("double_backward", "forward_mode")
    )
    assert float(wanted[0].value.detach()) > 0
    torch.testing.assert_close(found[0].value, wanted[0].value, rtol=1e-5, atol=0)
    torch.testing.assert_close(found[0].observed, wanted[0].observed, rtol=1e-5, atol=0)
    _assert_equal_to_1e_5(found[1], {name: value for name, value in wanted[1].items() if bool(value.any())})
    for name, buffer in wanted[2].items():
        assert torch.equal(found[2][name], buffer), f"{name}: the heads judge once either way"


def test_forward_mode_needs_no_second_derivative_of_the_features():
    with pytest.raises(RuntimeError, match="derivative .* is not implemented"):
        _penalty("attention", gradient="double_backward")
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        wanted, gradients, _ = _penalty("attention", gradient="double_backward")
    found = _penalty("attention", gradient="forward_mode")
    torch.testing.assert_close(found[0].value, wanted.value, rtol=1e-5, atol=0)
    _assert_equal_to_1e_5(found[1], {name: value for name, value in gradients.items() if bool(value.any())})


@pytest.mark.parametrize("gradient", ["double_backward", "forward_mode"])
def test_the_penalty_leaves_no_gradient_on_images_or_frozen_parts(gradient):
    discriminator, batch = _discriminator("classifier"), _batch()
    objective = _objective(r1_gradient=gradient)
    objective.r1_loss({"discriminator": discriminator}, batch).value.backward()
    assert batch.images.grad is None and not batch.images.requires_grad
    assert all(buffer.grad is None for buffer in discriminator.buffers())


@pytest.mark.parametrize("network", ["classifier", "norms and pools"])
def test_one_pass_of_the_features_equals_two(network):
    one, two = _discriminator(network), _discriminator(network)
    objective, batch, networks = _objective(), _batch(), {"generator": Shrink()}
    passes = []
    one.scratch["one"].register_forward_hook(lambda module, inputs, output: passes.append(len(output[0])))
    found = _descended(objective.discriminator_loss(networks | {"discriminator": one}, batch), one)
    assert passes == [2 * _ROWS]
    with torch.no_grad():
        generated = objective.generate(networks["generator"], batch)
    fake, real = two(generated), two(batch.images)
    losses = F.softplus(fake) + F.softplus(-real)
    objective.over_rows(losses, splits=two.splits).backward()
    torch.testing.assert_close(found[0].value, objective.over_rows(losses, splits=two.splits), rtol=1e-6, atol=0)
    _assert_equal_to_1e_5(found[1], {name: p.grad for name, p in two.named_parameters()})
    for name, buffer in two.named_buffers():
        torch.testing.assert_close(found[2][name], buffer, rtol=1e-5, atol=1e-6)
