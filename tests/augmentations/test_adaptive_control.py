"""The control that keeps a discriminator from learning few images by heart."""

from __future__ import annotations

import pytest

from onestep.augmentations.stylegan2_ada import StyleGan2Ada


def adapt(probability, *, sign, target, images, ramp_images=500_000):
    pipe = StyleGan2Ada(probability=probability, operations={}, target=target, ramp_images=ramp_images)
    return pipe.adapted(probability, mean=sign, images=images)


def test_the_probability_follows_the_sign_of_the_real_logits():
    step = 4 * 512 / 500_000
    assert adapt(0.2, sign=0.7, target=0.6, images=4 * 512) == pytest.approx(0.2 + step)
    assert adapt(0.2, sign=0.5, target=0.6, images=4 * 512) == pytest.approx(0.2 - step)
    assert adapt(0.2, sign=0.6, target=0.6, images=4 * 512) == 0.2


def test_it_takes_the_ramp_from_none_to_all_and_on():
    probability = 0.0
    for _ in range(20):
        probability = adapt(probability, sign=1.0, target=0.6, images=100, ramp_images=1000)
    assert probability == pytest.approx(2.0)


def test_it_stays_at_zero_at_least():
    assert adapt(0.001, sign=-1.0, target=0.6, images=4 * 512) == 0.0


def test_a_ramp_of_no_images_is_refused():
    with pytest.raises(ValueError, match="ramp_images 0"):
        adapt(0.0, sign=1.0, target=0.6, images=1, ramp_images=0)
