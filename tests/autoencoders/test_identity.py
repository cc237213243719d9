"""The codec of pixel space: EDM's scaling, in both directions."""

from __future__ import annotations

import torch

from onestep.autoencoders.identity import Identity


def test_all_levels_survive_encoding_and_decoding():
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    images = Identity().encode(levels)
    assert images.dtype == torch.float32 and (images.min(), images.max()) == (-1, 1)
    assert torch.equal(Identity().decode(images), levels)
    assert torch.equal(Identity().decode(images.double()), levels)
