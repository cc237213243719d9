"""Cross entropy on shifted images."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from onestep.classifiers import Prediction
from onestep.objectives import Batch
from onestep.objectives.cross_entropy import CrossEntropy, shift_rows


class Uniform:
    """Random streams that give set numbers."""

    def __init__(self, numbers):
        self.numbers = numbers

    def uniform(self, *shape):
        assert self.numbers.shape[1:] == shape
        return self.numbers


class Linear(nn.Module):
    """A classifier whose logits are the first pixels."""

    def forward(self, images):
        return Prediction(logits=images.flatten(1)[:, :3], features=images, taps=(images,) * 4)


def _batch(images, labels, numbers=None):
    numbers = torch.full((len(images), 2), 0.5) if numbers is None else numbers
    return Batch(images=images, condition=labels, random=Uniform(numbers), images_seen=0)


def test_loss_is_minus_the_log_of_the_labels_probability():
    images = torch.zeros(2, 1, 2, 2)
    images[0, 0, 0, 0] = 2.0
    loss = CrossEntropy(shift=0).classifier_loss({"classifier": Linear()}, _batch(images, torch.eye(3)[[0, 1]]))
    first, second = -math.log(math.exp(2) / (math.exp(2) + 2)), math.log(3)
    assert loss.value.item() == pytest.approx((first + second) / 2)
    assert loss.observed["accuracy"].item() == 0.5  # three equal logits count as the first class


def test_images_move_by_their_own_whole_pixels_and_the_border_repeats():
    image = torch.arange(9.0).reshape(1, 1, 3, 3)
    moved = shift_rows(image.expand(3, 2, 3, 3), down=torch.tensor([1, 0, -2]), right=torch.tensor([0, -1, 5]))
    assert moved.shape == (3, 2, 3, 3)
    assert moved[0, 0].tolist() == [[0, 1, 2], [0, 1, 2], [3, 4, 5]]
    assert moved[1, 1].tolist() == [[1, 2, 2], [4, 5, 5], [7, 8, 8]]
    assert moved[2, 0].tolist() == [[6, 6, 6], [6, 6, 6], [6, 6, 6]]


def test_all_shifts_up_to_the_limit_occur_equally_often():
    shift, numbers = 2, (torch.arange(1000) + 0.5) / 1000
    images = torch.arange(25.0).reshape(1, 1, 5, 5).expand(1000, 1, 5, 5)
    batch = _batch(images, torch.eye(10)[[0] * 1000], torch.stack([numbers, torch.full_like(numbers, 0.5)], dim=1))
    centres = CrossEntropy(shift=shift).shifted(batch)[:, 0, 2, 2]
    values, counts = centres.unique(return_counts=True)
    assert values.tolist() == [2, 7, 12, 17, 22]
    assert counts.tolist() == [200] * 5


def test_a_run_without_labels_is_refused():
    with pytest.raises(ValueError, match="conditional: true"):
        CrossEntropy(shift=0).classifier_loss({"classifier": Linear()}, _batch(torch.zeros(1, 1, 2, 2), None))


def test_a_negative_shift_is_refused():
    with pytest.raises(ValueError, match="shift -1: expected"):
        CrossEntropy(shift=-1)
