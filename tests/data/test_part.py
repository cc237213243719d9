"""Parts of a dataset: a draw and the rest of it are apart, in the order of the dataset, and prepared as any dataset."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from image_archives import write_archive
from onestep.data._archive import prepare
from onestep.data.image_zip import ImageZip
from onestep.data.part import Part


@pytest.fixture
def whole(tmp_path):
    path = tmp_path / "whole.zip"
    images = [(np.full((1, 8, 8), number, dtype=np.uint8), number % 4) for number in range(40)]
    write_archive(path, images)
    return path


def _numbers(dataset):
    return [int(dataset[index][0][0, 0, 0]) for index in range(len(dataset))]


def test_a_part_and_the_rest_are_the_whole_and_apart(whole):
    part, rest = Part(source=whole, images=28, seed=1), Part(source=whole, images=28, seed=1, rest=True)
    assert (len(part), len(rest)) == (28, 12)
    assert sorted(_numbers(part) + _numbers(rest)) == list(range(40))
    assert _numbers(part) == sorted(_numbers(part)) and _numbers(rest) == sorted(_numbers(rest))
    assert _numbers(part) != _numbers(Part(source=whole, images=28, seed=2))
    labels = [part[index][1] for index in range(len(part))]
    assert np.bincount(labels).tolist() == [7, 7, 7, 7] and part.classes == 4
    assert labels == [number % 4 for number in _numbers(part)]


def test_a_part_is_prepared_as_any_dataset_by_several_processes(whole, tmp_path):
    part = Part(source=whole, images=10)
    card = prepare(part, target=tmp_path / "part.zip", workers=2)
    archive = ImageZip(source=tmp_path / "part.zip")
    assert (card["images"], card["resolution"], card["channels"], card["classes"]) == (10, 8, 1, 4)
    assert _numbers(archive) == _numbers(part) == _numbers(pickle.loads(pickle.dumps(part)))


@pytest.mark.parametrize(("images", "rest"), [(41, False), (40, True), (0, False)])
def test_a_part_of_no_images_or_too_many_is_refused(whole, images, rest):
    with pytest.raises(ValueError, match=f"images: got {images}"):
        Part(source=whole, images=images, rest=rest)
    assert len(Part(source=whole, images=40)) == 40 and len(Part(source=whole, images=39, rest=True)) == 1
