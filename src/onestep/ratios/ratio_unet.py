"""The first half of the generator's U-Net with a small head: one number for an image at a noise level."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from onestep.networks import build_denoiser
from onestep.networks._denoiser import Compiler, condition_of
from onestep.networks._layers import GroupNorm

__all__ = ["RatioUNet"]

_LEAST = 8  # size of a map that the head's first convolution halves
_EPS = 1e-5  # of torch's group normalisation


class RatioUNet(nn.Module):
    """Encoder of the generator's architecture, with its embedding of noise level and classes, and a head.

    It scales images and embeds noise levels as denoisers do (c_in and c_noise of arXiv:2206.00364, table 1). The head,
    on the coarsest map, is that of DMD2 (arXiv:2405.14867): a 4x4 convolution of stride 2 and one of stride 4, each
    with group normalisation and SiLU, and a 1x1 convolution. It fits maps of 8x8, as of CIFAR-10 and of ImageNet at 64
    pixels. Adapted by choice: a map below 8x8, as of small images, lacks the first convolution; one below 4x4 has a
    second of its own size; and larger maps end in several numbers, whose mean is the result.

    The architecture is one choice among others: that of arXiv:2502.08005 is not public.

    Args:
        network: Config of the generator, whose class has `encode` (`onestep.networks.Network`).
        teacher: Weights of the run's teacher.
        weights: Those of the encoder at the start: of the run's `teacher`, or `random`. The head's are random.

    Raises:
        ValueError: The network has no encoder, the head does not fit it, or the teacher has other tensors.
    """

    casts_weights: ClassVar[bool] = True

    def __init__(
        self,
        *,
        network: Mapping[str, Any],
        teacher: Mapping[str, Tensor] | None = None,
        weights: Literal["teacher", "random"] = "teacher",
    ) -> None:
        super().__init__()
        denoiser = build_denoiser(network)
        self.model = cast(Any, denoiser.model)
        if not hasattr(self.model, "encode"):
            expected = "one with `encode` (see onestep/networks/__init__.py)"
            raise ValueError(f"ratio_unet: got the network {type(self.model).__name__}, expected {expected}")
        for part in self.model.decoder_parts:
            delattr(self.model, part)
        self.coefficients, self.sigma_data = denoiser.coefficients, denoiser.sigma_data
        self.label_dim = denoiser.label_dim
        self.head = _head(*self.model.encoded)
        if weights == "teacher" and teacher is not None:
            self._take(teacher)

    def _take(self, teacher: Mapping[str, Tensor]) -> None:
        own = {f"model.{name}": each for name, each in self.model.state_dict().items()}
        wrong = [name for name, each in own.items() if name not in teacher or teacher[name].shape != each.shape]
        if wrong:
            found = f"{list(teacher[wrong[0]].shape)}" if wrong[0] in teacher else "no tensor"
            raise ValueError(f"teacher: got {found} as {wrong[0]}, expected {list(own[wrong[0]].shape)}")
        self.model.load_state_dict({name.removeprefix("model."): teacher[name] for name in own}, strict=True)

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return log ratios [B]: see `onestep.ratios.Ratio`. ValueError: the condition has another width than K."""
        return self._ratios(x, sigma, condition, image_type=torch.float32)

    def _ratios(self, x: Tensor, sigma: Tensor, condition: Tensor | None, *, image_type: torch.dtype) -> Tensor:
        level = sigma.to(torch.float32).reshape(-1, 1, 1, 1)
        _, _, scale, noise = self.coefficients(level, self.sigma_data)
        inner = (scale * x.to(torch.float32)).to(image_type)
        encoded = self.model.encode(inner, noise.flatten(), condition_of(condition, width=self.label_dim, like=x))
        return self.head(encoded.to(torch.float32)).mean(dim=(1, 2, 3))

    def execution_view(self, *, bfloat16: bool, compiled: Compiler, is_constant: bool = True) -> Callable[..., Tensor]:
        """Return the network with its encoder in bfloat16, or compiled: see `onestep.networks.execution_view`.

        The head and the result are float32. An encoder that does not cast its weights stays in float32.
        """
        image_type = torch.bfloat16 if bfloat16 and getattr(self.model, "casts_weights", False) else torch.float32

        def ratios(x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
            return self._ratios(x, sigma, condition, image_type=image_type)

        return compiled(ratios)


def _head(channels: int, size: int) -> nn.Sequential:
    """Return the head of a map [B, channels, size, size]: to [B, 1, 1, 1], or more numbers of a map above 8x8."""
    layers: list[nn.Module] = []
    if size >= _LEAST:
        layers += [nn.Conv2d(channels, channels, 4, stride=2, padding=1), GroupNorm(channels, eps=_EPS), nn.SiLU()]
        size //= 2
    kernel = min(size, 4)
    layers += [nn.Conv2d(channels, channels, kernel, stride=kernel), GroupNorm(channels, eps=_EPS), nn.SiLU()]
    return nn.Sequential(*layers, nn.Conv2d(channels, 1, 1))
