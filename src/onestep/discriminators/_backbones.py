"""Frozen backbones of discriminators: classifiers of this package and networks of timm, and their batch norms.

Legend: B images, C H W an image. Taps are four inner feature maps of a network, from fine to coarse.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from onestep.checkpoints.published_weights import in_timms_names, read_published_weights
from onestep.classifiers import Classifier, load_classifier
from onestep.discriminators._resize import resized

_STRIDES = (4, 8, 16, 32)  # of the taps, and those for which heads are sized, for all networks of timm
# The reference takes VGG's taps before a pooling, those of other networks after it; its maps are twice as large, and so
# are its maps of logits.
_VGG_STRIDES = (2, 4, 8, 16)
_TAPS = len(_STRIDES)
_PROBE_SIZE = 256  # pixels
_logger = logging.getLogger(__name__)


class Backbone(nn.Module):
    """A frozen network that maps images to four taps.

    State dict: `network.` and the network's own names.

    Attributes:
        channels: C; grey images are repeated to this number.
        tap_channels: Channels of the four taps.
        strides: Image pixels per pixel of each tap, in each direction.
        nominal_strides: Strides for which heads are sized; the reference sizes them alike for all networks.
        token_width: Token width of a vision transformer, whose taps are token maps of one size; a readout turns them
            into maps of `tap_channels` at `strides`. None for a convolutional network.
        image_size: The only image size that the network takes; None for any size.
        recompute: Whether the backward pass computes the network's activations again, from the images.
    """

    recompute = False
    scale: Tensor
    offset: Tensor

    def __init__(
        self,
        network: nn.Module,
        *,
        channels: int,
        tap_channels: tuple[int, ...],
        strides: tuple[float, ...],
        mean: tuple[float, ...],
        std: tuple[float, ...],
        nominal_strides: tuple[float, ...] | None = None,
        token_width: int | None = None,
        image_size: int | None = None,
    ) -> None:
        """Freeze `network`, which maps images in [0, 1], normalised by `mean` and `std` per channel, to the taps."""
        super().__init__()
        self.network = freeze(network)
        self.channels, self.tap_channels, self.strides = channels, tap_channels, strides
        self.nominal_strides = strides if nominal_strides is None else nominal_strides
        self.token_width, self.image_size = token_width, image_size
        means, stds = (torch.tensor(values).reshape(-1, 1, 1) for values in (mean, std))
        # ((x + 1) / 2 - mean) / std of images x in [-1, 1], in the form that is exactly x for mean = std = 0.5.
        self.register_buffer("scale", 0.5 / stds, persistent=False)
        self.register_buffer("offset", (0.5 - means) / stds, persistent=False)

    def forward(self, images: Tensor, *, size: int | None = None) -> tuple[Tensor, ...]:
        """Return the taps of images [B, C or 1, H, W] in [-1, 1], resized to `size` x `size` if it is given."""
        if images.shape[1] not in (1, self.channels):
            raise ValueError(f"images: got {images.shape[1]} channels, expected {self.channels} for this backbone")
        images = images.expand(-1, self.channels, -1, -1) * self.scale + self.offset
        # After the normalisation, as in the reference: the two commute up to rounding, which decides at ReLU kinks.
        if size is not None and images.shape[-2:] != (size, size):
            images = resized(images, size=(size, size), align_corners=False)
        if self.recompute and torch.is_grad_enabled() and images.requires_grad:
            # In evaluation mode nothing in it is random.
            return checkpoint(self.network, images, use_reentrant=False, preserve_rng_state=False)
        return self.network(images)


def check_sizes(backbones: Mapping[str, Backbone], *, resolution: int | None) -> None:
    """Raise ValueError where there is no backbone, or one takes images of another size than `resolution`."""
    if not backbones:
        raise ValueError("backbones: got none, expected at least one")
    for name, each in backbones.items():
        if each.image_size not in (None, resolution):
            raise ValueError(f"resolution: got {resolution}, expected {each.image_size} for the backbone {name}")


def freeze(module: nn.Module, *, persistent: bool = True) -> nn.Module:
    """Turn all parameters of `module` into buffers of the same names, and set evaluation mode.

    No optimizer, `requires_grad_` or gradient average reaches a buffer. If `persistent`, it is in the state dict.
    """
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            delattr(part, name)
            part.register_buffer(name, parameter.detach(), persistent=persistent)
    return module.eval()


def build_backbone(path: Path, *, timm: str | None, strides: tuple[int, ...] | None = None) -> Backbone:
    """Load a network of timm if `timm` names one, else the classifier of a snapshot; ValueError: the file has none.

    `strides` are those of other taps than a discriminator's, of a convolutional network of timm.
    """
    if timm is not None:
        return load_timm_backbone(path, name=timm, strides=strides)
    if strides is not None:
        raise ValueError(f"{path}: got a classifier, expected a network of timm with taps of strides {list(strides)}")
    classifier, config = load_classifier(path)
    return classifier_backbone(classifier, channels=config["channels"])


class ClassifierTaps(nn.Module):
    """The taps of a classifier of `onestep.classifiers`."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the four taps of images [B, C, H, W] in [-1, 1]."""
        return self.classifier(images).taps


def classifier_backbone(classifier: nn.Module, *, channels: int) -> Backbone:
    """Freeze a `Classifier` of images with `channels` channels as a backbone."""
    tap_channels = cast(Classifier, classifier).tap_channels
    half, strides = (0.5,) * channels, (1, 2, 4, 8)
    taps = ClassifierTaps(classifier)
    return Backbone(taps, channels=channels, tap_channels=tap_channels, strides=strides, mean=half, std=half)


class TimmTaps(nn.Module):
    """A network of timm up to its last tap; `indices` are the taps among the results of `forward_intermediates`.

    State dict: `model.` and timm's names.
    """

    def __init__(self, model: Any, *, indices: Sequence[int]) -> None:
        super().__init__()
        self.model: Any = model
        self.indices = list(indices)
        self.model.prune_intermediate_layers(self.indices, prune_norm=True, prune_head=True)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the taps of normalised images [B, C, H, W]; those of a transformer are maps of its patch tokens."""
        return tuple(
            self.model.forward_intermediates(
                images, indices=self.indices, norm=False, stop_early=True, output_fmt="NCHW", intermediates_only=True
            )
        )


def load_timm_backbone(path: Path, *, name: str, strides: tuple[int, ...] | None = None) -> Backbone:
    """Build a network of timm, such as `vgg16_bn.tv_in1k`, with the weights of a local file; nothing is downloaded.

    The file is safetensors, or of `torch.save` with tensors only. It has timm's names; a file of EfficientNet-lite0 may
    have others, and is then read by position. ValueError: timm has no such network, it has no usable taps, or the file
    does not fit it.
    """
    model, weights = create_timm(name), read_published_weights(path)
    load_timm_weights(model, weights, path=path, name=name)
    return timm_backbone(model, name=name, strides=strides)


def create_timm(name: str) -> nn.Module:
    """Return a network of timm with random weights that change no random numbers of the run; ValueError: no such."""
    import timm  # takes a second

    if not timm.is_model(name):
        raise ValueError(f"timm: got {name!r}, expected a name of timm.list_models() of timm {timm.__version__}")
    with torch.random.fork_rng(devices=[]):
        return timm.create_model(name, pretrained=False)


def load_timm_weights(model: nn.Module, weights: Mapping[str, Tensor], *, path: Path, name: str) -> None:
    """Give a network of timm, `name`, the weights of the file `path`; ValueError: they do not fit it."""
    try:
        model.load_state_dict(in_timms_names(weights, names=model.state_dict(), network=name), strict=True)
    except (RuntimeError, ValueError) as error:
        lines = str(error).splitlines()
        found = "; ".join(line.strip()[:200] for line in (lines[1:4] if isinstance(error, RuntimeError) else lines))
        raise ValueError(f"{path}: not the weights of timm's {name}: {found}") from None


def timm_backbone(model: Any, *, name: str, strides: tuple[int, ...] | None = None) -> Backbone:
    """Freeze a network of timm as a backbone; ValueError: it has no such taps.

    A convolutional network has its taps at strides 4, 8, 16 and 32 (a VGG at 2, 4, 8 and 16, as in the reference), a
    plain vision transformer after each quarter of its blocks, before any final norm. `strides` are those
    of other taps of a convolutional network.
    """
    from timm.models.vision_transformer import VisionTransformer

    for part in model.modules():
        if hasattr(part, "fused_attn"):  # fused attention has no second derivative, which R1 needs
            part.fused_attn = False
    if isinstance(model, VisionTransformer) and strides is None:
        indices, shape = _of_transformer(model, name=name)
    else:
        indices, shape = _of_convnet(model, name=name, strides=strides)
    config = model.pretrained_cfg
    return Backbone(
        TimmTaps(model, indices=indices),
        nominal_strides=_STRIDES if strides is None else strides,
        channels=config["input_size"][0],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        **shape,
    )


def _of_convnet(model: Any, *, name: str, strides: tuple[int, ...] | None) -> tuple[list[int], dict[str, Any]]:
    import timm
    from timm.models.vgg import VGG

    strides = strides or (_VGG_STRIDES if isinstance(model, VGG) else _STRIDES)
    if not hasattr(model, "forward_intermediates"):
        raise ValueError(
            f"{name}: got a network whose feature maps timm {timm.__version__} does not give, expected a convolutional "
            f"network or a plain vision transformer. Fix: take another one; for a VGG, timm 1.0.31 or newer"
        )
    infos: list[Mapping[str, Any]] = list(model.feature_info)
    reductions = [info["reduction"] for info in infos]
    if not set(strides) <= set(reductions):
        raise ValueError(
            f"{name}: got feature maps of strides {sorted(set(reductions))}, expected a convolutional network with "
            f"strides {list(strides)}, or a plain vision transformer"
        )
    indices = [reductions.index(stride) for stride in strides]
    return indices, {"tap_channels": tuple(infos[index]["num_chs"] for index in indices), "strides": strides}


def _of_transformer(model: Any, *, name: str) -> tuple[list[int], dict[str, Any]]:
    """Return the indices of the taps, and the sizes of the images, tokens and maps (see `TokenReadout`)."""
    (size, width), (patch, _) = model.patch_embed.img_size, model.patch_embed.patch_size
    if size != width or size % (2 * patch) or len(model.blocks) < _TAPS:
        raise ValueError(
            f"{name}: got {size}x{width} pixels in patches of {patch}, {len(model.blocks)} blocks; expected a square "
            f"with an even number of patches in each direction, and {_TAPS} blocks or more"
        )
    tokens = model.embed_dim
    return [len(model.blocks) * quarter // _TAPS - 1 for quarter in range(1, _TAPS + 1)], {
        "tap_channels": (tokens // 8, tokens // 4, tokens // 2, tokens),  # as published: 96, 192, 384, 768 for 768
        "strides": (patch / 4, patch / 2, patch, patch * 2),
        "token_width": tokens,
        "image_size": size,
    }


@torch.no_grad()
def probe_batch_norms(network: nn.Module, *, channels: int) -> None:
    """Run a black image (zeros, [1, channels, 256, 256], not normalised) once with batch norms in training mode.

    The released code, like that of Projected GAN, passes such an image through each convolutional backbone before it
    sets evaluation mode, so that every running statistic becomes 0.9 times the pre-trained one plus 0.1 times that of
    this image. The published numbers come from networks changed in this way. Networks without batch norms do not run.
    """
    norms = [part for part in network.modules() if isinstance(part, _BatchNorm)]
    for norm in norms:
        norm.train()
    if norms:
        network(torch.zeros(1, channels, _PROBE_SIZE, _PROBE_SIZE))
    for norm in norms:
        norm.eval()


@torch.no_grad()
def fold_batch_norms(network: nn.Module) -> int:
    """Fold each batch norm that is the only reader of a convolution into the convolution's weight and bias.

    This saves reading and writing each feature map once. Results change by rounding only; products are computed in
    float64. An activation inside timm's batch norms stays. Other batch norms stay, and so does a network whose control
    flow depends on its inputs. The network is frozen (see `freeze`), with final statistics. Return the number folded.
    """
    if not any(isinstance(part, nn.BatchNorm2d) for part in network.modules()):
        return 0
    try:
        pairs = list(_pairs(network))
    except (fx.proxy.TraceError, TypeError, RuntimeError) as error:
        _logger.warning("batch norms are not folded, which costs time only: %s", " ".join(str(error).split())[:200])
        return 0
    for convolution, name, norm in pairs:
        _fold(convolution, norm)
        network.set_submodule(name, getattr(norm, "act", None) or nn.Identity())
    return len(pairs)


class _Tracer(fx.Tracer):
    """Traces convolutions and batch norms, also timm's subclasses, as one node each."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, (nn.Conv2d, nn.BatchNorm2d)) or super().is_leaf_module(m, module_qualified_name)


def _pairs(network: nn.Module) -> Iterator[tuple[nn.Conv2d, str, nn.BatchNorm2d]]:
    """Yield each convolution and the batch norm, with its name, that is its only reader; both are called once."""
    calls = [node for node in _Tracer().trace(network).nodes if node.op == "call_module"]
    used = [node.target for node in calls]
    for node in calls:
        before = node.args[0] if node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module":
            continue
        name, convolution = str(node.target), network.get_submodule(str(before.target))
        norm = network.get_submodule(name)
        is_only_reader = len(before.users) == 1 and used.count(node.target) == used.count(before.target) == 1
        if is_only_reader and isinstance(norm, nn.BatchNorm2d) and isinstance(convolution, nn.Conv2d):
            yield convolution, name, norm


def _fold(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    mean, variance, dtype = norm.running_mean, norm.running_var, convolution.weight.dtype
    assert mean is not None and variance is not None, "a frozen batch norm has statistics"
    scale = _double(norm.weight, 1.0) / (variance.double() + norm.eps).sqrt()
    shift = (_double(convolution.bias, 0.0) - mean.double()) * scale + _double(norm.bias, 0.0)
    weight = convolution.weight.double() * scale.reshape(-1, 1, 1, 1)
    for name, value in {"weight": weight, "bias": shift}.items():
        delattr(convolution, name)
        convolution.register_buffer(name, value.to(dtype))


def _double(value: Tensor | None, default: float) -> Tensor:
    return torch.tensor(default, dtype=torch.float64) if value is None else value.double()
