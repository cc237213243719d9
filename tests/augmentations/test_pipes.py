"""What every pipe keeps, and what each operation does to an image."""

from __future__ import annotations

import pytest
import torch

from onestep.augmentations.diffaugment import DiffAugment
from onestep.augmentations.edm import Edm
from onestep.augmentations.stylegan2_ada import StyleGan2Ada

TINTS = ["brightness", "contrast", "lumaflip", "hue", "saturation"]
ADA = ["xflip", "rotate90", "xint", "scale", "rotate", "aniso", "xfrac", *TINTS]
EDM = ["xflip", "yflip", "rotate_int", "translate_int", "scale", "rotate_frac", "aniso", "translate_frac", *TINTS]


def _ada(*operations, probability=1.0):
    return StyleGan2Ada(probability=probability, operations=dict.fromkeys(operations or ADA, 1.0))


def _edm(*operations, probability=1.0):
    return Edm(probability=probability, operations=dict.fromkeys(operations or EDM, 1.0))


def _diff():
    return DiffAugment(color=True, translation=True, cutout=True)


PIPES = [pytest.param(make(), id=make.__name__) for make in (_ada, _edm, _diff)]


def _images(rows=6, channels=3, side=12, dtype=torch.float32):
    generator = torch.Generator().manual_seed(3)
    return torch.rand(rows, channels, side, side, generator=generator, dtype=dtype) * 2 - 1


def _run(pipe, images, seed=5):
    return pipe(images, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("pipe", PIPES)
def test_a_generator_decides_everything_and_the_global_one_is_left_alone(pipe):
    images = _images()
    before = torch.get_rng_state()
    one, same, other = _run(pipe, images), _run(pipe, images), _run(pipe, images, seed=6)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(one.images, same.images) and torch.equal(one.labels, same.labels)
    assert not torch.allclose(one.images, other.images)
    assert one.images.shape == images.shape and one.images.dtype == images.dtype


@pytest.mark.parametrize("pipe", PIPES)
def test_gradients_of_images_equal_finite_differences(pipe):
    images = _images(rows=2, side=8, dtype=torch.float64).requires_grad_()
    generator = torch.Generator().manual_seed(1)
    weight, direction = (torch.randn(images.shape, generator=generator, dtype=torch.float64) for _ in range(2))

    def value(given):
        return (_run(pipe, given).images.tanh() * weight).sum()

    (slope,) = torch.autograd.grad(value(images), images)
    with torch.no_grad():
        wanted = (value(images + 1e-5 * direction) - value(images - 1e-5 * direction)) / 2e-5
    assert wanted.abs() > 0.1
    torch.testing.assert_close((slope * direction).sum(), wanted, rtol=1e-7, atol=0)


@pytest.mark.parametrize(
    "pipe", [_ada("xflip", probability=0.0), Edm(probability=1.0, operations={"xflip": 0.0})], ids=str
)
def test_nothing_to_do_changes_nothing(pipe):
    images = _images()
    torch.testing.assert_close(_run(pipe, images).images, images, rtol=0, atol=1e-5)


def test_no_operation_is_the_identity_bit_for_bit_and_draws_nothing():
    images = _images(channels=2)
    off = DiffAugment(color=False, translation=False, cutout=False)
    for pipe in (StyleGan2Ada(probability=1, operations={}), Edm(probability=1, operations={"hue": 0.0}), off):
        generator = torch.Generator().manual_seed(0)
        before = generator.get_state()
        found = pipe(images, generator=generator)
        assert torch.equal(found.images, images)
        assert found.labels.shape == (len(images), 0)
        assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize(("channels", "side"), [(3, 12), (1, 13), (3, 7)])
def test_probability_zero_runs_the_filters_and_says_that_nothing_was_done(channels, side):
    images = _images(channels=channels, side=side)
    edm, ada = _run(_edm(probability=0.0), images), _run(_ada(probability=0.0), images)
    for found in (edm, ada):
        torch.testing.assert_close(found.images, images, rtol=0, atol=2e-5)
    assert edm.labels.shape == (len(images), 19) and not edm.labels.any()
    still = torch.tensor([0, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1.0])
    assert torch.equal(ada.labels, still.expand(len(images), 18))


def test_edm_flips_exactly():
    images = _images(rows=16)
    found = _run(_edm("xflip"), images)
    flipped = found.labels == 1
    assert flipped.any() and not flipped.all()
    assert torch.equal(found.images, torch.where(flipped[:, :, None, None], images.flip(3), images))


def test_edm_flips_upside_down():
    images = _images(rows=16)
    found = _run(_edm("yflip"), images)
    flipped = found.labels == 1
    assert torch.equal(found.images, torch.where(flipped[:, :, None, None], images.flip(2), images))


def test_edm_turns_by_quarters_exactly():
    images = _images(rows=24)
    found = _run(_edm("rotate_int"), images)
    quarters = {(0, 0): 0, (1, 0): 1, (1, 1): 2, (0, 1): 3}
    turns = [quarters[tuple(bits)] for bits in found.labels.int().tolist()]
    assert set(turns) == {0, 1, 2, 3}
    for image, turned, turn in zip(images, found.images, turns, strict=True):
        assert torch.equal(turned, torch.rot90(image, turn, dims=(1, 2)))


def _smooth(rows, side=24):
    """Images coarse enough for a filter that is not quite symmetric: mirrored, they are a tenth of a pixel off."""
    y, x = torch.meshgrid(*(torch.linspace(0, 1, side),) * 2, indexing="ij")
    return (torch.sin(3 * x + y) + 0.5 * torch.cos(2 * y * x)).expand(rows, 3, side, side)


def test_ada_flips_and_turns_as_its_labels_say():
    images, inside = _smooth(24), (..., slice(4, -4), slice(4, -4))
    found = _run(_ada("xflip"), images)
    wanted = torch.where((found.labels == 1)[:, :, None, None], images.flip(3), images)
    assert len(found.labels.unique()) == 2
    torch.testing.assert_close(found.images[inside], wanted[inside], rtol=0, atol=3e-2)
    found = _run(_ada("rotate90"), images)
    wanted = torch.stack([torch.rot90(images[0], int(turns), dims=(1, 2)) for turns in found.labels])
    assert len(found.labels.unique()) == 4
    torch.testing.assert_close(found.images[inside], wanted[inside], rtol=0, atol=3e-2)


def test_edm_turns_square_images_only():
    with pytest.raises(ValueError, match="12x10 pixels: rotate_int expects square"):
        _run(_edm("rotate_int"), _images()[..., :10])


@pytest.mark.parametrize(("pipe", "down"), [(_ada("xint"), 1), (_edm("translate_int"), -1)], ids=["ada", "edm"])
def test_a_whole_pixel_shift_brings_in_the_reflection(pipe, down):
    images = _images(rows=16, side=16)[..., :15]
    found = _run(pipe, images)
    shifts = (found.labels * torch.tensor([15, 16]) * 0.125).round().int().tolist()
    assert len({tuple(shift) for shift in shifts}) > 4
    for image, moved, (x, y) in zip(images, found.images, shifts, strict=True):
        padded = torch.nn.functional.pad(image, (2, 2, 2, 2), mode="reflect")
        top, left = 2 - down * y, 2 - x
        wanted = padded[:, top : top + 16, left : left + 15]
        torch.testing.assert_close(moved, wanted, rtol=0, atol=2e-5)


def test_a_ramp_is_scaled_about_the_centre():
    x = torch.linspace(-1, 1, 32).expand(8, 3, 32, 32)
    for found in (_run(_ada("scale"), x), _run(_edm("scale"), x)):
        slope = (found.images[:, 0, 16, 18] - found.images[:, 0, 16, 13]) / (x[0, 0, 0, 18] - x[0, 0, 0, 13])
        size = found.labels[:, 0] if bool((found.labels > 0).all()) else (found.labels[:, 0] * 0.2).exp2()
        torch.testing.assert_close(slope, 1 / size, rtol=2e-2, atol=0)


def test_colours_are_moved_along_and_about_the_grey_axis():
    images = _images()
    luma = images.mean(dim=1, keepdim=True)
    chroma = images - luma
    shape = (-1, 1, 1, 1)

    def both(name):
        return [_run(make(name), images) for make in (_ada, _edm)]

    ada, edm = both("brightness")
    torch.testing.assert_close(ada.images, images + ada.labels.view(shape))
    torch.testing.assert_close(edm.images, images + 0.2 * edm.labels.view(shape))
    ada, edm = both("contrast")
    torch.testing.assert_close(ada.images, images * ada.labels.view(shape))
    torch.testing.assert_close(edm.images, images * (0.5 * edm.labels.view(shape)).exp2())
    ada, edm = both("saturation")
    torch.testing.assert_close(ada.images, luma + chroma * ada.labels.view(shape))
    torch.testing.assert_close(edm.images, luma + chroma * edm.labels.view(shape).exp2())
    for found in both("lumaflip"):
        assert len(found.labels.unique()) == 2
        torch.testing.assert_close(found.images, chroma + luma * (1 - 2 * found.labels.view(shape)))
    for found in both("hue"):
        turned = found.images - found.images.mean(dim=1, keepdim=True)
        torch.testing.assert_close(found.images.mean(dim=1, keepdim=True), luma)
        cos = (turned * chroma).sum(dim=1) / chroma.square().sum(dim=1)
        torch.testing.assert_close(cos, (1 + found.labels[:, 0]).view(-1, 1, 1).expand_as(cos), rtol=0, atol=1e-4)


@pytest.mark.parametrize("pipe", [_ada(), _edm()], ids=["ada", "edm"])
def test_grey_images_become_the_mean_of_what_their_colours_would(pipe):
    grey = _images(channels=1)
    found, coloured = _run(pipe, grey), _run(pipe, grey.expand(-1, 3, -1, -1))
    torch.testing.assert_close(found.images, coloured.images.mean(dim=1, keepdim=True), rtol=0, atol=2e-5)
    assert torch.equal(found.labels, coloured.labels)


@pytest.mark.parametrize("pipe", [_ada("hue"), _edm("hue")], ids=["ada", "edm"])
def test_colours_of_other_channel_counts_are_refused(pipe):
    with pytest.raises(ValueError, match="images of 2 channels"):
        _run(pipe, _images(channels=2))


def test_operations_befall_rows_as_often_as_said():
    images = _images(rows=4000, side=4)
    halves = _run(Edm(probability=0.5, operations={"brightness": 0.5}), images).labels.ne(0).float().mean()
    assert halves.item() == pytest.approx(0.25, abs=0.03)
    turned = _run(StyleGan2Ada(probability=0.5, operations={"rotate": 1.0}), images).labels.view(-1, 2, 2).any(dim=2)
    assert turned.any(dim=1).float().mean().item() == pytest.approx(0.5, abs=0.03)
    assert turned.float().mean().item() == pytest.approx(1 - 0.5**0.5, abs=0.03)


def test_rows_do_not_touch_each_other():
    images = _images()
    changed = images.clone()
    changed[2:] = 0
    for pipe in (_ada(), _edm(), _diff()):
        assert torch.equal(_run(pipe, images).images[:2], _run(pipe, changed).images[:2])


def test_differentiable_augmentation_shifts_in_zeros_and_cuts_one_square():
    images = _images(rows=32, side=16) + 3
    moved = _run(DiffAugment(color=False, translation=True, cutout=False), images).images
    kept = (moved[:, 0] != 0).flatten(1).sum(dim=1)
    assert {(16 - y) * (16 - x) for y in range(3) for x in range(3)} >= set(kept.tolist()) and len(kept.unique()) > 3
    cut = _run(DiffAugment(color=False, translation=False, cutout=True), images).images
    lost = (cut[:, 0] == 0).flatten(1).sum(dim=1)
    assert lost.max() == 9 and lost.min() >= 4
    assert torch.equal(cut[cut != 0], images[cut != 0])


@pytest.mark.parametrize("pipe", [Edm, StyleGan2Ada])
def test_options_that_mean_nothing_are_refused(pipe):
    with pytest.raises(ValueError, match="probability -0.1"):
        pipe(probability=-0.1, operations={})
    with pytest.raises(ValueError, match="operation 'flip': expected one of xflip, .*saturation"):
        pipe(probability=0.1, operations={"flip": 1.0})
    with pytest.raises(ValueError, match="multiplier nan of xflip"):
        pipe(probability=0.1, operations={"xflip": float("nan")})
