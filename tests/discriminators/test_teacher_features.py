"""Heads on inner maps of a teacher: recordings of FastGen's LADD, noise and its packing, what has no gradient."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from onestep.discriminators.teacher_features import TeacherFeatures
from onestep.networks import build_denoiser
from onestep.objectives import Batch
from onestep.objectives.d2o import D2O
from onestep.objectives.relativistic import Relativistic
from onestep.training.streams import CountedRows
from recorded_studies import Replayed, StandIn, constants, load_heads, objectives_of, tensors, tolerance

_FILE = "ladd.npz"
_ALL = (0.0, 1.0)  # the whole grid


@pytest.fixture(scope="module")
def recorded(golden):
    return objectives_of(golden)


@pytest.fixture(scope="module")
def arrays(recorded):
    return recorded.load(_FILE)


@pytest.fixture(params=["both", "bottleneck"])
def case(request, recorded, arrays):
    """The recordings of some heads, and the discriminator with their weights."""
    own, found = constants(recorded, _FILE), tensors(arrays, f"{request.param}/")
    teacher = StandIn(tensors(arrays, "teacher/")).requires_grad_(False)
    # Its full resolution is no feature, so that the first feature is map 1.
    chosen = own["heads"][request.param]
    levels = None if chosen is None else tuple(index + 1 for index in chosen)
    sizes = [(own["ch"], own["R"] >> level) for level in range(3)]
    discriminator = TeacherFeatures(levels=levels, grid=_ALL, teacher=teacher, map_shapes=sizes, img_channels=3, seed=0)
    heads = tensors(arrays, f"{request.param}/heads/discriminator_heads.")
    load_heads(discriminator.discriminators, heads)
    return found, discriminator, own


def _position(sigma):
    """Return the position on EDM's grid of noise levels."""
    low, high = 0.002 ** (1 / 7), 80.0 ** (1 / 7)
    return (sigma.double() ** (1 / 7) - low) / (high - low)


def _prepared(discriminator, images, sigma, noise):
    """Return noisy images with these draws."""
    return discriminator.prepared(images, random=Replayed(_position(sigma), noise), condition=None).float()


def _close(recorded, found, wanted):
    rtol, atol = (tolerance(recorded, _FILE, rf"losses {each} ([\d.e-]+\d)") for each in (r"abs [\d.e-]+ rel", "abs"))
    torch.testing.assert_close(found, wanted, rtol=rtol, atol=atol, check_dtype=False)


def _assert_gradients(recorded, network, case, prefix):
    wanted = {name: each for name, each in case.items() if name.startswith(prefix)}
    largest = max(float(each.abs().max()) for each in wanted.values())
    for name, each in wanted.items():
        found = network.get_parameter(name.removeprefix(f"{prefix}discriminator_heads.")).grad
        share = tolerance(recorded, _FILE, r"grads rel ([\d.e-]+\d)")
        assert (found - each).abs().max() <= share * each.abs().max() + 1e-6 * largest, name


@pytest.mark.golden
@pytest.mark.parametrize("noise", ["same", "own"])
@pytest.mark.parametrize("weight", ["r1_0.0", "r1_100.0"])
def test_the_loss_of_the_heads_equals_the_recordings(case, recorded, noise, weight):
    found, discriminator, own = case
    step = f"D_step/{noise}/{weight}/"
    fake = _prepared(discriminator, found["generated"], found["t"], found["eps"])
    names = ("t", "eps") if noise == "same" else (f"{step}t_real", f"{step}eps_real")
    sigma, eps = (found[name] for name in names)
    real = _prepared(discriminator, found["real"], sigma, eps)
    with torch.no_grad():
        features = discriminator.frozen_features(torch.cat([fake, real]))
    rows = len(fake)
    logits_fake = discriminator.heads([tuple(m[:rows] for m in maps) for maps in features])
    logits_real = discriminator.heads([tuple(m[rows:] for m in maps) for maps in features])
    value = F.softplus(logits_fake).mean() + F.softplus(-logits_real).mean()
    _close(recorded, value, found[f"{step}gan_loss_disc"])
    if f"{step}gan_loss_ar1" in found:
        # As recorded: the clean image with a little noise, at the level of the noisy one.
        moved = found["real"] + own["alpha"] * found[f"{step}eps_r1"]
        packed = _prepared(discriminator, moved, sigma, torch.zeros_like(moved))
        penalty = (logits_real - discriminator(packed)).square().mean()
        value = value + own["r1_weight"] * penalty
        _close(recorded, penalty, found[f"{step}gan_loss_ar1"])
    _close(recorded, value, found[f"{step}total_loss"])
    value.backward()
    _assert_gradients(recorded, discriminator.discriminators, found, f"{step}grad/")


class Made(nn.Module):
    """A generator of given images."""

    def __init__(self, images):
        super().__init__()
        self.images = nn.Parameter(images.clone())

    def forward(self, noisy, sigma, condition):
        return self.images


@pytest.mark.golden
def test_ladd_is_objective_d2o_with_it(case, recorded):
    """Of FastGen's own noise for real images: the draws of one phase, in its order."""
    found, discriminator, _ = case
    networks = {"generator": Made(found["generated"]), "discriminator": discriminator}
    objective = D2O(rows_per_rank=1.0)

    def batch(*draws):
        random = Replayed(found["real"], *draws)
        return Batch(images=found["real"], condition=None, random=random, images_seen=0)

    mine, step = (_position(found["t"]).float(), found["eps"]), "D_step/own/r1_0.0/"
    theirs = _position(found[f"{step}t_real"]).float(), found[f"{step}eps_real"]
    generator, heads, _ = objective.phases()
    loss = heads.loss(networks, batch(*mine, *theirs))
    _close(recorded, loss.value, found[f"{step}gan_loss_disc"])
    loss = generator.loss(networks, batch(*mine))
    _close(recorded, loss.value, found["G_step/loss"])
    loss.value.backward()
    wanted, share = found["G_step/grad_generated"], tolerance(recorded, _FILE, r"grads rel ([\d.e-]+\d)")
    assert (networks["generator"].images.grad - wanted).abs().max() <= share * wanted.abs().max()


def _denoiser(classes=0):
    torch.manual_seed(0)
    config = {"name": "song_unet", "img_resolution": 8, "img_channels": 2, "model_channels": 8, "channel_mult": (1, 2)}
    network = build_denoiser(config | {"num_blocks": 1, "attn_resolutions": (8,), "label_dim": classes, "dropout": 0.0})
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return network.eval().requires_grad_(False)


def _built(*, classes=0, **options):
    teacher = _denoiser(classes)
    shapes = teacher.model.map_shapes
    return TeacherFeatures(
        teacher=teacher, map_shapes=shapes, img_channels=2, classes=classes, seed=0, **{"levels": (0, 1), **options}
    )


def _rows(rows=range(4)):
    return CountedRows(seed=1, phase="any", rows=rows, device=torch.device("cpu"))


def _images(count=4):
    return torch.rand(4, 2, 8, 8, generator=torch.Generator().manual_seed(5))[:count] - 0.5


def test_levels_and_conditions_reach_the_teacher_as_they_were_packed():
    """With more classes than one channel of 8 x 8 numbers has room for."""
    discriminator, seen = _built(classes=70), []
    discriminator.teacher.register_forward_pre_hook(lambda _, given: seen.append(given))
    condition = F.one_hot(torch.tensor([0, 69, 3, 33]), 70).float()
    random = _rows()
    sets = torch.cat([_images(), _images()])
    packed = discriminator.prepared(sets, random=random, condition=condition)
    assert packed.shape == (8, 2 + 2, 8, 8)
    features = discriminator.frozen_features(packed)
    ((noisy, sigma, given),) = seen
    assert torch.equal(given, torch.cat([condition, condition])) and [len(each) for each in features] == [1, 1]
    again = _rows()
    for part in (slice(0, 4), slice(4, 8)):
        position, noise = again.uniform(), again.normal(2, 8, 8)
        torch.testing.assert_close(_position(sigma[part]).float(), 0.02 + 0.96 * position)
        torch.testing.assert_close(noisy[part], _images() + sigma[part, None, None, None] * noise)


def test_sets_may_have_the_same_noise_and_clean_ones_have_none():
    same = _built(same_noise=True).prepared(torch.cat([_images(), _images()]), random=_rows(), condition=None)
    own = _built().prepared(torch.cat([_images(), _images()]), random=_rows(), condition=None)
    assert torch.equal(same[:4], same[4:]) and torch.equal(own[:4], same[:4]) and not torch.equal(own[4:], same[4:])
    clean = _built(grid=None)
    packed = clean.prepared(_images(), random=None, condition=None)
    torch.testing.assert_close(clean(packed), clean(_images()))


def test_rows_do_not_depend_on_each_other_and_gradients_reach_images_and_heads_alone():
    discriminator = _built()
    packed = discriminator.prepared(_images(), random=_rows(), condition=None)
    whole = discriminator(packed)
    halves = [
        discriminator(discriminator.prepared(_images()[part], random=_rows(range(4)[part]), condition=None))
        for part in (slice(0, 2), slice(2, 4))
    ]
    torch.testing.assert_close(torch.cat(halves), whole)
    assert whole.shape == (4, 2) and discriminator.splits == (2,)
    packed = packed.requires_grad_()
    discriminator(packed).sum().backward()
    assert packed.grad[:, :2].any() and not packed.grad[:, 2:].any()
    trained = {name.split(".")[0] for name, each in discriminator.named_parameters() if each.grad is not None}
    assert trained == {"discriminators"}


def test_equal_images_with_the_same_noise_are_equally_real():
    """Of objective relativistic, whose pairs differ by their noise otherwise; and its penalties are differentiable."""
    batch = Batch(images=_images(), condition=None, random=_rows(), images_seen=0)
    for same in (True, False):
        networks = {"generator": Made(_images()), "discriminator": _built(same_noise=same)}
        step, _ = Relativistic(gamma=1.0).phases()
        loss = step.loss(networks, batch)
        assert (loss.observed["logits_fake"] == loss.observed["logits_real"]) == same
        assert (loss.observed["r1_penalty"] == loss.observed["r2_penalty"]) == same and loss.observed["r1_penalty"] > 0
        loss.value.backward()
        moved = [each.grad for each in networks["discriminator"].discriminators.parameters() if each.grad is not None]
        assert moved and all(bool(torch.isfinite(each).all()) for each in moved)


@pytest.mark.parametrize(
    ("wrong", "part"), [({"levels": (0, 0)}, "levels"), ({"levels": (2,)}, "levels"), ({"grid": (0.9, 0.1)}, "grid")]
)
def test_wrong_options_are_refused_in_one_line(wrong, part):
    with pytest.raises(ValueError, match=part) as error:
        _built(**wrong)
    assert "\n" not in str(error.value)
