"""Teachers: published architectures; from a teacher to its generator: config, weights, frozen parameters."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from onestep.config.freezing import drawn_at_random, frozen_by, matches, patterns_of
from onestep.config.laws import laws_like
from onestep.networks._denoiser import network_class, option_names

# By data: resolution, classes, channel multipliers, dropout. Each exists as vp (DDPM++) and as ve (NCSN++).
_SONG: Mapping[str, tuple[int, int, tuple[int, ...], float]] = {
    "edm-cifar10-32x32-uncond": (32, 0, (2, 2, 2), 0.13),
    "edm-cifar10-32x32-cond": (32, 10, (2, 2, 2), 0.13),
    "edm-ffhq-64x64-uncond": (64, 0, (1, 2, 2, 2), 0.05),
    "edm-afhqv2-64x64-uncond": (64, 0, (1, 2, 2, 2), 0.25),
}
_STYLES = {"vp": ("positional", "standard", 1, (1, 1)), "ve": ("fourier", "residual", 2, (1, 3, 3, 1))}
_STYLE_OPTIONS = ("embedding_type", "encoder_type", "channel_mult_noise", "resample_filter")
_SONG_OPTIONS = {"img_channels": 3, "model_type": "SongUNet", "decoder_type": "standard", "model_channels": 128}
_ADM = {
    "img_resolution": 64,
    "img_channels": 3,
    "label_dim": 1000,
    "model_type": "DhariwalUNet",
    "model_channels": 192,
    "channel_mult": (1, 2, 3, 4),
    "dropout": 0.1,
    "use_fp16": True,
}
# Sizes of EDM2 (arXiv:2312.02696): base width, dropout. A name ends in thousands of images and EMA length.
_EDM2 = re.compile(r"edm2-img(64|512)-(xs|s|m|l|xl|xxl)(-uncond)?-[0-9]{7}-0\.[0-9]{3}")
_EDM2_SIZES = {"xs": (128, 0.0), "s": (192, 0.0), "m": (256, 0.1), "l": (320, 0.1), "xl": (384, 0.1), "xxl": (448, 0.1)}
# DiT (arXiv:2212.09748) and SiT (arXiv:2401.08740) in size XL, whose options are the defaults of the network: law, and
# resolution of the latents.
_DIT = {"dit-xl-2-256x256": ("ddpm", 32), "dit-xl-2-512x512": ("ddpm", 64), "sit-xl-2-256x256": ("flow", 32)}


def published_architecture(name: str) -> dict[str, Any]:
    """Return the config of a checkpoint of EDM or EDM2, the file `name` without `.pkl`, or of another one by its name.

    Sources: Karras et al., arXiv:2206.00364, table 7, and the checkpoints; of EDM2 arXiv:2312.02696; of
    `ddpm-cifar10-32` Ho et al., arXiv:2006.11239, appendix B; of `dit-xl-2-256x256`, `dit-xl-2-512x512` and
    `sit-xl-2-256x256` their papers. Those take latents, [4, 32, 32] or [4, 64, 64], as do those of EDM2 at 512 pixels.
    ValueError: None of this name was published.
    """
    if (edm2 := _EDM2.fullmatch(name)) is not None:
        width, dropout = _EDM2_SIZES[edm2[2]]
        return {
            "name": "edm2",
            "img_resolution": 64,
            "img_channels": 3 if edm2[1] == "64" else 4,
            "label_dim": 0 if edm2[3] else 1000,
            "model_channels": width,
            "dropout": dropout,
            "use_fp16": True,
        }
    found: dict[str, dict[str, Any]] = {}
    for data, (resolution, classes, channel_mult, dropout) in _SONG.items():
        own = {"img_resolution": resolution, "label_dim": classes, "channel_mult": channel_mult, "dropout": dropout}
        for style, values in _STYLES.items():
            chosen = dict(zip(_STYLE_OPTIONS, values, strict=True))
            found[f"{data}-{style}"] = {**_SONG_OPTIONS, **own, **chosen, "augment_dim": 9}
    found["edm-imagenet-64x64-cond-adm"] = {**_ADM}
    # The defaults of the network are its options.
    ddpm = {"name": "unet2d", "img_resolution": 32, "img_channels": 3, "label_dim": 0, "preconditioning": "ddpm"}
    found["ddpm-cifar10-32"] = ddpm
    for each, (law, size) in _DIT.items():
        sizes = {"img_resolution": size, "img_channels": 4, "label_dim": 1000}
        found[each] = {"name": "dit", **sizes, "preconditioning": law}
    if name not in found:
        raise ValueError(f"published architecture: got {name!r}, expected one of {', '.join(found)}, or one of EDM2")
    return found[name]


def one_step_config(teacher: Mapping[str, Any], *, preconditioning: str, dropout: float | None) -> dict[str, Any]:
    """Return the config of the generator that starts from a teacher of a config as `build_denoiser` takes it.

    `dropout` is the generator's, 0 in the paper; None keeps the teacher's. The paper's law is `d2o`, for networks of
    EDM's; others keep their own.

    Raises:
        ValueError: The network has no option `dropout`, and a positive one is given; or its weights are of another law.
    """
    if preconditioning not in (suitable := laws_like(teacher.get("preconditioning", "edm"))):
        expected = f"expected {' or '.join(suitable)}, as the teacher's. Fix: preconditioning: {suitable[0]} in the run"
        raise ValueError(f"preconditioning: got {preconditioning!r}, {expected}")
    network = network_class(teacher)
    config = {**teacher, **getattr(network, "generator_options", {})}
    if dropout is not None and "dropout" in option_names(network):
        config["dropout"] = dropout
    elif dropout:
        raise ValueError(f"dropout: got {dropout}, expected 0, because {network.__name__} has no dropout")
    return {**config, "preconditioning": preconditioning}


def teacher_weights_for(network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return those of a teacher's weights that a generator takes: all but its family's `teacher_only` ones.

    ValueError: the other tensors differ in names or shapes.
    """
    expected = {name: str(list(tensor.shape)) for name, tensor in network.state_dict().items()}
    dropped = getattr(network, "teacher_only", ())
    # Differs from the reference: it copies tensors of equal names and skips the rest; here only the tensors that the
    # family declares are dropped, and everything else must match.
    weights = {name: tensor for name, tensor in state.items() if name in expected or not matches(name, dropped)}
    given = {name: str(list(tensor.shape)) for name, tensor in weights.items()}
    differing = sorted(name for name in expected.keys() | given.keys() if expected.get(name) != given.get(name))
    if differing:
        none = "has none"
        listed = [f"{n}: network {expected.get(n, none)}, teacher {given.get(n, none)}" for n in differing[:5]]
        more = [f"and {len(differing) - 5} more"] if len(differing) > 5 else []
        raise ValueError(f"teacher: got tensors that differ from the network's: {'; '.join([*listed, *more])}")
    return weights


def frozen_parameters(network: nn.Module, levels: Sequence[str], *, seed: int | None = None) -> list[str]:
    """Return the names of the parameters that `freeze: levels` excludes from training, in the network's order.

    Levels are those of the network's family (`freeze_levels`). Their patterns are matched by `fnmatch.fnmatchcase`
    against whole parameter names of the denoiser (`model.enc.8x8_block0.conv0.weight`): `*` matches any characters,
    dots included, `?` one character, `[01]` one of a set. What a pattern of a level behind a `!` matches is trained. A
    level may also be a pattern itself. The published levels of EDM's networks are [] (D2O), [conv, proj] (D2O-F),
    [conv, proj, qkv], [conv, proj, qkv, skip].

    With a `seed`, return as many parameters, up to the size of a tensor, of tensors drawn at random in their place:
    the control that separates which parameters are frozen from how many.

    Only names matter, so the denoiser may be built on torch's meta device, without weights.

    Raises:
        ValueError: A level is unknown, or a pattern matches no parameter.
    """
    names = [name for name, _ in network.named_parameters()]
    known: Mapping[str, tuple[str, ...]] = getattr(network, "freeze_levels", {})
    patterns = [(level, pattern) for level in levels for pattern in patterns_of(level, known)]
    for level, pattern in patterns:
        if not any(matches(name, [pattern]) for name in names):
            through = "" if level == pattern else f" (pattern {pattern!r})"
            raise ValueError(
                f"freeze: got {level!r}{through}, which matches no parameter of the network; "
                f"expected levels among {', '.join(known) or 'none'}, or patterns of parameter names"
            )
    frozen = {name for level in levels for name in frozen_by(level, names, levels=known)}
    if seed is not None:
        sizes = {name: parameter.numel() for name, parameter in network.named_parameters()}
        frozen = set(drawn_at_random(sizes, most=sum(sizes[name] for name in frozen), seed=seed))
    return [name for name in names if name in frozen]
