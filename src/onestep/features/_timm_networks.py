"""Networks of timm as extractors use them: built without a download, weights out of a local file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from onestep.checkpoints.published_weights import read_published_weights

Weights = Mapping[str, Tensor]


def load_timm_network(
    path: Path, *, name: str, convert: Callable[[Weights, nn.Module], Weights], options: Mapping[str, Any]
) -> nn.Module:
    """Build a network of timm with the weights of a file, in evaluation mode.

    Args:
        path: safetensors, or a file of `torch.save` with nothing but tensors.
        name: What timm calls the network.
        convert: From the file's tensors, for this network, to tensors under timm's names.
        options: timm's own options of the network.

    Raises:
        ValueError: The file does not fit the network.
        OSError: The file cannot be opened.
    """
    # Here and not above, because importing timm takes a second.
    import timm

    weights = read_published_weights(path)
    with torch.device("meta"):  # no time for numbers that the file replaces
        model = timm.create_model(name, pretrained=False, **options)
    try:
        model.load_state_dict(convert(weights, model), strict=True, assign=True)
    except (RuntimeError, KeyError) as error:
        lines = "; ".join(line.strip()[:200] for line in str(error).splitlines()[1:4]) or f"lacks {error}"
        raise ValueError(f"{path}: not the weights of timm's {name}: {lines}") from None
    return model.to(torch.float32).eval().requires_grad_(False)
