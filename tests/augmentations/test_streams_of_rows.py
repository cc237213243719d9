"""With one stream a row, what becomes of an image does not depend on the batch it stands in."""

from __future__ import annotations

import pytest
import torch

from onestep import components
from onestep.training.streams import CountedRows

TINTS = {"brightness": 1.0, "contrast": 1.0, "lumaflip": 1.0, "hue": 1.0, "saturation": 1.0}
MOVES = {"xflip": 1.0, "scale": 1.0, "aniso": 1.0}
OPTIONS = {
    "edm": {
        "probability": 0.7,
        "operations": TINTS | MOVES | dict.fromkeys(["yflip", "rotate_int", "translate_int", "translate_frac"], 1.0),
    },
    "stylegan2_ada": {
        "probability": 0.7,
        "operations": TINTS | MOVES | dict.fromkeys(["rotate90", "xint", "rotate", "xfrac"], 1.0),
    },
    "diffaugment": {"color": True, "translation": True, "cutout": True},
}


def _run(name, images, rows):
    random = CountedRows(seed=3, phase="generator", rows=rows, device=torch.device("cpu"))
    return components.load("augmentations", name)(**OPTIONS[name])(images, generator=random)


@pytest.mark.parametrize("name", components.choices("augmentations"))
def test_two_halves_of_a_batch_are_the_whole(name):
    images = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    whole = _run(name, images, range(6))
    halves = [_run(name, images[rows], range(rows.start, rows.stop)) for rows in (slice(0, 2), slice(2, 6))]
    assert not torch.allclose(whole.images, images)
    torch.testing.assert_close(torch.cat([half.images for half in halves]), whole.images, rtol=0, atol=2e-5)
    assert torch.equal(torch.cat([half.labels for half in halves]), whole.labels)


def test_whole_numbers_of_a_row_take_every_value_and_no_other():
    images = torch.ones(2000, 1, 16, 16)
    turns = _run("edm", images, range(2000)).labels[:, 2:4]
    assert len(turns.unique(dim=0)) == 4
    random = CountedRows(seed=3, phase="generator", rows=range(2000), device=torch.device("cpu"))
    moved = components.load("augmentations", "diffaugment")(color=False, translation=True, cutout=False)
    places = moved(images, generator=random).images[:, 0]
    tops = places.amax(dim=2).sum(dim=1) * torch.where(places[:, 0].amax(dim=1) > 0, 1, -1)
    assert set(tops.tolist()) == {14, 15, 16, -15, -14}
