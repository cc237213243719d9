"""Published networks as extractors: timm's architectures with the weights of a local file, run in parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from onestep.checkpoints.published_weights import read_published_weights
from onestep.features import Precision, computing
from onestep.features._pixels import as_rgb

Weights = Mapping[str, Tensor]

# Images per call of a network, which bounds its memory. Few on a CPU, so that the C library reuses the memory of a
# layer: above 32 MiB it returns to the system after every use, which takes a quarter of the Inception network's time.
_ROWS, _ROWS_ON_A_CPU = 64, 8


def load_timm_network(
    path: Path, *, name: str, convert: Callable[[Weights, Any], Weights], options: Mapping[str, Any]
) -> nn.Module:
    """Build a network of timm with the weights of a file, in evaluation mode; nothing is downloaded.

    Args:
        path: safetensors, or a file of `torch.save` that holds tensors only.
        name: timm's name of the network.
        convert: Renames and reshapes the file's tensors to those of the network.
        options: timm's options of the network.

    Raises:
        ValueError: The file does not fit the network.
        OSError: The file cannot be opened.
    """
    # Imported here, because importing timm takes a second.
    import timm

    weights = read_published_weights(path)
    with torch.device("meta"):  # no initialisation, because the file replaces all weights
        model = timm.create_model(name, pretrained=False, **options)
    try:
        model.load_state_dict(convert(weights, model), strict=True, assign=True)
    except (RuntimeError, KeyError) as error:
        lines = "; ".join(line.strip()[:200] for line in str(error).splitlines()[1:4]) or f"lacks {error}"
        raise ValueError(f"{path}: not the weights of timm's {name}: {lines}") from None
    return model.to(torch.float32).eval().requires_grad_(False)


def run_in_parts(
    network: Callable[[Tensor], Tensor], pixels: Tensor, *, prepare: Callable[[Tensor], Tensor], precision: Precision
) -> Tensor:
    """Return the network's output, float32 [B, D], for pixels, uint8 [B, 3 or 1, H, W].

    Args:
        network: From prepared images to features, on the pixels' device.
        pixels: The images; grey is repeated to RGB.
        prepare: Resizes and normalises RGB pixels, in float32.
        precision: Precision of the network.

    Raises:
        ValueError: The pixels are not uint8, or have another shape.
    """
    parts = []
    for part in as_rgb(pixels).split(_ROWS_ON_A_CPU if pixels.device.type == "cpu" else _ROWS):
        images = prepare(part)
        with computing(precision, device=pixels.device):
            parts.append(network(images).to(torch.float32))
    return torch.cat(parts)
