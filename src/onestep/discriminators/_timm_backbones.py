"""Backbones out of timm: any convolutional network or plain vision transformer by its name, weights from a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from onestep.checkpoints.published_weights import read_published_weights
from onestep.discriminators._backbones import Backbone
from onestep.discriminators._vit_readout import readout_channels, readout_strides

# Pixels of the image, each way, that one pixel of a tap stands for; the heads are laid out for these, always.
_STRIDES = (4, 8, 16, 32)
# The reference ends VGG's taps before a pooling where those of other networks end after it, so its maps are twice as
# large, and so are its maps of logits.
_VGG_STRIDES = (2, 4, 8, 16)
_TAPS = len(_STRIDES)


class TimmTaps(nn.Module):
    """A network of timm up to its last tap.

    State dict: `model.` and timm's own names.
    """

    def __init__(self, model: nn.Module, *, indices: Sequence[int]) -> None:
        """Cut off what comes after the last tap.

        Args:
            model: Of timm.
            indices: Which of its intermediate results are the taps, in the order of `forward_intermediates`.
        """
        super().__init__()
        model.prune_intermediate_layers(list(indices), prune_norm=True, prune_head=True)
        self.model, self.indices = model, list(indices)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the taps of normalised images [B, C, H, W]; those of a transformer are maps of its patch tokens."""
        return tuple(
            self.model.forward_intermediates(
                images, indices=self.indices, norm=False, stop_early=True, output_fmt="NCHW", intermediates_only=True
            )
        )


def load_timm_backbone(path: Path, *, name: str) -> Backbone:
    """Build a network of timm, with the weights of a local file, and freeze it as a backbone. Nothing is downloaded.

    Args:
        path: Its weights under timm's names: safetensors, or a file of `torch.save` with nothing but tensors.
        name: What timm calls it, with the tag of its weights: `vgg16_bn.tv_in1k`.

    Raises:
        ValueError: timm has no such network, it has no taps to look at, or the file does not fit it.
        OSError: The file cannot be opened.
    """
    # Here and not above, because importing timm takes a second.
    import timm

    if not timm.is_model(name):
        raise ValueError(f"timm {timm.__version__} has no network called {name!r}; timm.list_models() has their names")
    weights = read_published_weights(path)
    with torch.random.fork_rng(devices=[]):
        model = timm.create_model(name, pretrained=False)
    try:
        model.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        lines = "; ".join(line.strip()[:200] for line in str(error).splitlines()[1:4])
        raise ValueError(f"{path}: not the weights of timm's {name}: {lines}") from None
    return timm_backbone(model, name=name)


def timm_backbone(model: nn.Module, *, name: str) -> Backbone:
    """Freeze a network of timm as a backbone.

    A convolutional network is tapped where its maps have strides 4, 8, 16 and 32 (a VGG: 2, 4, 8 and 16, as in the
    reference); a plain vision transformer after each quarter of its blocks, before any final norm.

    Raises:
        ValueError: It has no such taps.
    """
    from timm.models.vision_transformer import VisionTransformer

    _use_plain_attention(model)
    return _of_transformer(model, name=name) if isinstance(model, VisionTransformer) else _of_convnet(model, name=name)


def _use_plain_attention(model: nn.Module) -> None:
    """Have attention computed step by step: the gradient of the fused form has no gradient, and R1 needs one."""
    for part in model.modules():
        if hasattr(part, "fused_attn"):
            part.fused_attn = False


def _of_convnet(model: nn.Module, *, name: str) -> Backbone:
    from timm.models.vgg import VGG

    strides = _VGG_STRIDES if isinstance(model, VGG) else _STRIDES
    infos = [] if not hasattr(model, "forward_intermediates") else list(model.feature_info)
    reductions = [info["reduction"] for info in infos]
    if not set(strides) <= set(reductions):
        raise ValueError(
            f"{name}: its feature maps have strides {sorted(set(reductions)) or 'unknown to timm'}, but a backbone is "
            f"a convolutional network with strides {list(strides)}, or a plain vision transformer"
        )
    indices = [reductions.index(stride) for stride in strides]
    return Backbone(
        TimmTaps(model, indices=indices),
        tap_channels=tuple(infos[index]["num_chs"] for index in indices),
        strides=strides,
        nominal_strides=_STRIDES,
        **_input_of(model),
    )


def _of_transformer(model: nn.Module, *, name: str) -> Backbone:
    (size, width), (patch, _) = model.patch_embed.img_size, model.patch_embed.patch_size
    if size != width or size % (2 * patch) or len(model.blocks) < _TAPS:
        raise ValueError(
            f"{name}: {size}x{width} pixels in patches of {patch}, {len(model.blocks)} blocks; expected a square with "
            f"an even number of patches a side, and {_TAPS} blocks or more"
        )
    indices = [len(model.blocks) * quarter // _TAPS - 1 for quarter in range(1, _TAPS + 1)]
    return Backbone(
        TimmTaps(model, indices=indices),
        tap_channels=readout_channels(model.embed_dim),
        strides=readout_strides(patch),
        nominal_strides=_STRIDES,
        token_width=model.embed_dim,
        image_size=size,
        **_input_of(model),
    )


def _input_of(model: nn.Module) -> dict[str, object]:
    """Return how images are given to a network, as timm keeps it with the name of its weights."""
    given = model.pretrained_cfg
    return {"channels": given["input_size"][0], "mean": tuple(given["mean"]), "std": tuple(given["std"])}
