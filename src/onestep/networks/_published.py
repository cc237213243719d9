"""Architectures of EDM's published checkpoints, for use without the checkpoints.

Source: Karras et al., arXiv:2206.00364, table 7, and the checkpoints themselves.
"""

from __future__ import annotations

from typing import Any

# By checkpoint: resolution, classes, channel multipliers, dropout. Each exists as vp (DDPM++) and ve (NCSN++), the
# style of the network; both have EDM's preconditioning.
_SONG = {
    "edm-cifar10-32x32-uncond": (32, 0, (2, 2, 2), 0.13),
    "edm-cifar10-32x32-cond": (32, 10, (2, 2, 2), 0.13),
    "edm-ffhq-64x64-uncond": (64, 0, (1, 2, 2, 2), 0.05),
    "edm-afhqv2-64x64-uncond": (64, 0, (1, 2, 2, 2), 0.25),
}
_STYLES = {"vp": ("positional", "standard", 1, (1, 1)), "ve": ("fourier", "residual", 2, (1, 3, 3, 1))}


def published_architecture(name: str) -> dict[str, Any]:
    """Return the config of a checkpoint of EDM, the file `name` without `.pkl`, as `build_denoiser` takes it.

    Raises:
        ValueError: EDM published no such checkpoint.
    """
    found: dict[str, dict[str, Any]] = {}
    for data, (resolution, classes, channel_mult, dropout) in _SONG.items():
        for style, (embedding, encoder, channel_mult_noise, resample_filter) in _STYLES.items():
            found[f"{data}-{style}"] = {
                "img_resolution": resolution,
                "img_channels": 3,
                "label_dim": classes,
                "model_type": "SongUNet",
                "embedding_type": embedding,
                "encoder_type": encoder,
                "decoder_type": "standard",
                "channel_mult_noise": channel_mult_noise,
                "resample_filter": resample_filter,
                "model_channels": 128,
                "channel_mult": channel_mult,
                "augment_dim": 9,
                "dropout": dropout,
            }
    found["edm-imagenet-64x64-cond-adm"] = {
        "img_resolution": 64,
        "img_channels": 3,
        "label_dim": 1000,
        "model_type": "DhariwalUNet",
        "model_channels": 192,
        "channel_mult": (1, 2, 3, 4),
        "dropout": 0.1,
        "use_fp16": True,
    }
    if name not in found:
        raise ValueError(f"published architecture: got {name!r}, expected one of {', '.join(found)}")
    return found[name]
