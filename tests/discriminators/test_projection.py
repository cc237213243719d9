"""The fixed mixing of taps, against the recordings of the reference."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from onestep.discriminators.projected import CrossScaleMixing, mixing_channels


def _numbered(arrays, prefix):
    keys = sorted(
        (key for key in arrays if re.fullmatch(re.escape(prefix) + r"\d+", key)),
        key=lambda key: int(key[len(prefix) :]),
    )
    return [torch.from_numpy(arrays[key]) for key in keys]


@pytest.mark.golden
def test_mixing_equals_the_recordings(golden):
    arrays = golden.load("ccm_csm.npz")
    for case in golden.cases(arrays):
        taps, expected = _numbered(arrays, f"{case}/in"), _numbered(arrays, f"{case}/out")
        ccm, out = (arrays[f"{case}/{kind}_channels"].tolist() for kind in ("ccm", "out"))
        mixing = CrossScaleMixing(tap_channels=[tap.shape[1] for tap in taps], ccm_channels=ccm, out_channels=out)
        prefix = f"{case}/sd/"
        weights = {key.removeprefix(prefix): torch.from_numpy(a) for key, a in arrays.items() if key.startswith(prefix)}
        mixing.load_state_dict(weights, strict=True)
        mixed = mixing(taps)
        assert len(mixed) == len(expected)
        for found, wanted in zip(mixed, expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


@pytest.mark.golden
def test_published_widths_are_those_of_the_recording_that_expands(golden):
    arrays = golden.load("ccm_csm.npz")
    expanding = [case for case in golden.cases(arrays) if len(set(arrays[f"{case}/ccm_channels"].tolist())) > 1]
    assert expanding, "no recorded case has widths that grow"
    for case in expanding:
        ccm, out = (tuple(arrays[f"{case}/{kind}_channels"].tolist()) for kind in ("ccm", "out"))
        assert mixing_channels(ccm[0], levels=len(ccm)) == (ccm, out)


def test_every_mixed_map_sees_all_coarser_taps_and_no_finer_one():
    torch.manual_seed(0)
    mixing = CrossScaleMixing(tap_channels=(3, 4, 5, 6), ccm_channels=(8, 16, 32, 64), out_channels=(8, 8, 16, 32))
    taps = [
        torch.randn(2, channels, 16 >> level, 16 >> level, requires_grad=True)
        for level, channels in enumerate((3, 4, 5, 6))
    ]
    for level, mixed in enumerate(mixing(taps)):
        slopes = torch.autograd.grad(mixed.sum(), taps, retain_graph=True, allow_unused=True)
        assert [slope is not None for slope in slopes] == [tap >= level for tap in range(4)]


def test_mixing_is_linear_in_its_taps_up_to_a_constant():
    torch.manual_seed(0)
    mixing = CrossScaleMixing(
        tap_channels=(2, 2, 2, 2), ccm_channels=(4, 8, 16, 32), out_channels=(4, 4, 8, 16)
    ).double()
    shapes = [(1, 2, 8 >> level, 8 >> level) for level in range(4)]
    first, second = ([torch.randn(shape, dtype=torch.float64) for shape in shapes] for _ in range(2))
    middle = mixing([(a + b) / 2 for a, b in zip(first, second, strict=True)])
    for found, a, b in zip(middle, mixing(first), mixing(second), strict=True):
        torch.testing.assert_close(found, (a + b) / 2)
    assert all(
        isinstance(m, nn.Conv2d) for m in mixing.modules() if next(m.parameters(recurse=False), None) is not None
    )
