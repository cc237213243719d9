"""StyleGAN2's discriminator: logits, gradients and R1 as recorded; what it refuses."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F

from onestep.discriminators import build_discriminator
from onestep.discriminators.stylegan2 import StyleGan2
from onestep.objectives import Batch
from onestep.objectives.d2o import D2O

_FILE = "stylegan2_discriminator.npz"


@pytest.fixture(scope="module")
def recorded(golden):
    """The recordings of the studies; skipped where these recordings have none."""
    folder = golden.folder / "studies"
    if not (folder / "manifest.json").exists():
        pytest.skip(f"{folder}: no recordings of studies")
    return type(golden)(folder)


@pytest.fixture(scope="module")
def facts(recorded):
    recorded.load(_FILE)
    return recorded.manifest["files"][_FILE]


def _tolerances(facts):
    """Return the absolute and the relative tolerance of logits, and that of gradients."""
    words = facts["tol"]
    found = re.search(r"logits abs (\S+) rel (\S+), grads rel (\S+) ", words)
    assert found, words
    return tuple(map(float, found.groups()))


def _of(arrays, case):
    return {
        key.removeprefix(f"{case}/"): torch.from_numpy(value)
        for key, value in arrays.items()
        if key.startswith(f"{case}/")
    }


def _discriminator(options, arrays):
    built = StyleGan2(
        channel_base=options["channel_base"],
        channel_max=options["channel_max"],
        img_resolution=options["img_resolution"],
        img_channels=options["img_channels"],
        classes=options["c_dim"],
        seed=0,
    )
    weights = {key.removeprefix("sd/"): value for key, value in arrays.items() if key.startswith("sd/")}
    filters = [value for key, value in weights.items() if key.endswith("resample_filter")]
    own = [value for key, value in built.named_buffers() if key.endswith("filter")]
    assert own and all(torch.equal(each, filters[0]) for each in (*own, *filters))
    learned = {key: value for key, value in weights.items() if not key.endswith("resample_filter")}
    built.load_state_dict(learned, strict=True)
    return built


def _assert_near(found, wanted, share, what):
    apart = float((found - wanted).abs().max() / wanted.abs().max())
    assert apart <= share, f"{what}: {apart:.2e} of the largest"


@pytest.mark.golden
@pytest.mark.parametrize("gradient", ["double_backward", "forward_mode"])
def test_logits_gradients_and_penalty_are_those_recorded(recorded, facts, gradient):
    arrays, (absolute, relative, share) = recorded.load(_FILE), _tolerances(facts)
    for case, options in facts["constants"]["nets"].items():
        own = _of(arrays, case)
        discriminator, condition = _discriminator(options, own), own.get("labels")
        assert (condition is None) == (options["c_dim"] == 0)
        images = own["x"].clone().requires_grad_()
        logits = discriminator(images, condition)
        torch.testing.assert_close(logits.detach(), own["logits"], rtol=relative, atol=absolute)
        (slope,) = torch.autograd.grad(logits.sum(), images)
        _assert_near(slope, own["grad_x"], share, f"{case}: slope")
        _assert_near(slope.square().sum(dim=(1, 2, 3)), own["r1_penalty"], 2 * share, f"{case}: penalty")
        objective = D2O(r1_gamma=facts["constants"]["r1_gamma"], r1_gradient=gradient)
        batch = Batch(images=own["x"], condition=condition, random=None, images_seen=0)
        loss = objective.r1_loss({"discriminator": discriminator}, batch)
        _assert_near(loss.observed["r1_penalty"], own["r1_penalty"].mean(), 2 * share, f"{case}: mean penalty")
        loss.value.backward()
        gradients = {key: value for key, value in own.items() if key.startswith("r1_grad/")}
        assert gradients
        for key, value in gradients.items():
            gradient_of = discriminator.get_parameter(key.removeprefix("r1_grad/")).grad
            # The bias of the logit has none.
            found = torch.zeros_like(value) if gradient_of is None else gradient_of
            if value.any():
                _assert_near(found, value, share, f"{case}: {key}")
            else:
                assert not found.any(), key


def _small(**changes):
    options = {"channel_base": 128, "channel_max": 8, "img_resolution": 16, "img_channels": 1, "seed": 3}
    return StyleGan2(**(options | changes))


def _images(rows=8, *, channels=1, size=16):
    return torch.rand(rows, channels, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_weights_follow_from_the_seed_alone():
    torch.manual_seed(5)
    first, again, other = (_small(seed=seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.randn(9), torch.randn(9, generator=torch.Generator().manual_seed(5)))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not any(torch.equal(first[key], other[key]) for key in first if key.endswith("weight"))


def test_logits_begin_at_the_scale_of_one():
    logits = _small(channel_base=2048, channel_max=64, img_resolution=32)(_images(64, size=32))
    assert logits.shape == (64, 1) and 0.02 < float(logits.detach().std()) < 5


def test_groups_are_those_of_all_processes_together():
    discriminator, images = _small(), _images(16)
    whole = discriminator(images)
    for rank in (0, 1):  # which has every second image
        torch.testing.assert_close(discriminator(images[rank::2]), whole[rank::2], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(discriminator(images[:8]), whole[:8], rtol=1e-5, atol=1e-6)


def test_a_class_changes_the_logit_of_its_image_alone():
    discriminator, images = _small(classes=3), _images(4)
    labels = F.one_hot(torch.tensor([0, 1, 2, 0]), 3).float()
    logits = discriminator(images, labels)
    changed = discriminator(images, F.one_hot(torch.tensor([0, 1, 2, 1]), 3).float())
    assert logits.shape == (4, 1)
    assert torch.equal(logits[:3], changed[:3]) and not torch.allclose(logits[3], changed[3])


def test_what_does_not_fit_is_refused():
    for size in (4, 12):
        with pytest.raises(ValueError, match=f"^images: got {size} pixels"):
            _small(img_resolution=size)
    with pytest.raises(ValueError, match=r"^condition: .*\[B, 3\]"):
        _small(classes=3)(_images())
    for shape in ({"size": 8}, {"channels": 3}):
        with pytest.raises(ValueError, match=r"^images: .* \[1, 16, 16\]"):
            _small()(_images(**shape))
    with pytest.raises(ValueError, match="^group_size: got 6 images"):
        _small()(_images(6))
    assert _small()(_images(3)).shape == (3, 1)


def test_the_builder_supplies_the_images_shape_and_refuses_a_table():
    config = {"name": "stylegan2", "channel_base": 128, "channel_max": 8, "backbones": []}
    shape = {"backbones": {}, "classes": 3, "seed": 3, "resolution": 16, "channels": 1}
    built = build_discriminator(config, embedding=None, **shape)
    wanted = _small(classes=3).state_dict()
    assert all(torch.equal(value, wanted[key]) for key, value in built.state_dict().items())
    with pytest.raises(ValueError, match="^class_embeddings: .* stylegan2"):
        build_discriminator(config, embedding=torch.zeros(3, 4), **shape)


def test_in_bfloat16_it_has_nearly_the_same_logits_in_float32():
    discriminator, images = _small(channel_base=1024, channel_max=32, classes=3), _images(8)
    labels = F.one_hot(torch.arange(8) % 3, 3).float()
    view = discriminator.execution_view(bfloat16=True, compiled=lambda function: function)
    plain, half = discriminator(images, labels).detach(), view(images, labels).detach()
    assert half.dtype == torch.float32 and not torch.equal(half, plain)
    assert (half - plain).norm() < 0.05 * plain.norm()
