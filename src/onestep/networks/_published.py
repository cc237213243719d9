"""Architectures of EDM's published checkpoints, for use without the checkpoints.

Source: Karras et al., arXiv:2206.00364, table 7, and the checkpoints themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

_DDPM = MappingProxyType(
    {
        "model_type": "SongUNet",
        "embedding_type": "positional",
        "encoder_type": "standard",
        "decoder_type": "standard",
        "channel_mult_noise": 1,
        "resample_filter": (1, 1),
        "model_channels": 128,
    }
)
_NCSN = MappingProxyType(
    {
        **_DDPM,
        "embedding_type": "fourier",
        "encoder_type": "residual",
        "channel_mult_noise": 2,
        "resample_filter": (1, 3, 3, 1),
    }
)
_ADM = MappingProxyType({"model_type": "DhariwalUNet", "model_channels": 192, "channel_mult": (1, 2, 3, 4)})


def _song(network: Mapping[str, Any], *, resolution: int, dropout: float, classes: int = 0) -> Mapping[str, Any]:
    shape = {"img_resolution": resolution, "img_channels": 3, "label_dim": classes}
    mult = (2, 2, 2) if resolution == 32 else (1, 2, 2, 2)
    return MappingProxyType({**shape, **network, "channel_mult": mult, "augment_dim": 9, "dropout": dropout})


# "vp" and "ve" name the network's style; all have EDM's preconditioning.
_PUBLISHED = MappingProxyType(
    {
        "edm-cifar10-32x32-uncond-vp": _song(_DDPM, resolution=32, dropout=0.13),
        "edm-cifar10-32x32-cond-vp": _song(_DDPM, resolution=32, dropout=0.13, classes=10),
        "edm-cifar10-32x32-uncond-ve": _song(_NCSN, resolution=32, dropout=0.13),
        "edm-cifar10-32x32-cond-ve": _song(_NCSN, resolution=32, dropout=0.13, classes=10),
        "edm-ffhq-64x64-uncond-vp": _song(_DDPM, resolution=64, dropout=0.05),
        "edm-ffhq-64x64-uncond-ve": _song(_NCSN, resolution=64, dropout=0.05),
        "edm-afhqv2-64x64-uncond-vp": _song(_DDPM, resolution=64, dropout=0.25),
        "edm-afhqv2-64x64-uncond-ve": _song(_NCSN, resolution=64, dropout=0.25),
        "edm-imagenet-64x64-cond-adm": MappingProxyType(
            {"img_resolution": 64, "img_channels": 3, "label_dim": 1000, **_ADM, "dropout": 0.10, "use_fp16": True}
        ),
    }
)


def published_architecture(name: str) -> dict[str, Any]:
    """Return the config of a checkpoint of EDM, as `build_denoiser` takes it.

    Args:
        name: Name of the checkpoint's file without `.pkl`.

    Raises:
        ValueError: EDM published no such checkpoint.
    """
    if name not in _PUBLISHED:
        raise ValueError(f"published architecture: got {name!r}, expected one of {', '.join(_PUBLISHED)}")
    return dict(_PUBLISHED[name])
