"""Easy consistency tuning: a denoiser becomes a one-step generator without a teacher beside it (ECT, arXiv:2406.14548).

Consistency training (arXiv:2303.01469, section 5) that starts from a denoiser: an image with noise of level t and the
same image with the same noise of a lower level r shall be denoised to one image. At first r is 0, which is denoising;
in stages r approaches t. Equations and constants as in the released code (github.com/locuslab/ect).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from onestep.config.constraints import Constraint, Count, LogSigma, NotNegative, Positive, Share
from onestep.objectives import Batch, Loss, Networks, Origin, Phase, Pretrained

__all__ = ["EasyConsistency"]

_GENERATOR = "generator"


@dataclass(frozen=True, kw_only=True)
class EasyConsistency:
    """The mean over images of w(t, r) d(G(x + t e; t), G(x + r e; r)), where the second image is constant.

    d = sqrt(|a - b|^2 + c^2) - c, with the square summed over channels and pixels, so it grows with the image size. The
    lower level is r = t (1 - n(t) / q^(stage + 1)), n(t) = 1 + k sigmoid(-b t), but not below 0; where it is 0, the
    image without noise takes the place of the second one. Both evaluations have the same weights and the same dropout
    masks, except where torch.compile draws the masks (`compile.networks`).

    Settings of the paper's code, with the law `edm`, at which a denoiser of noise 0 is the identity:

    - CIFAR-10 in an hour: the defaults but `q: 256.0`, `stage_images` absent; optimizer `radam`, learning rate 1e-4,
      batch 128, 1.02 M images, dropout 0.2, half-life of the EMA 127,000 images.
    - CIFAR-10, 12.8 to 51.2 M images: the defaults and `stage_images: 3_200_000`; half-life 887,000 images.
    - ImageNet-64: `q: 4.0`, `c: 0.06`, `p_mean: -0.8`, `p_std: 1.6`, `weighting: edm`, `stage_images: 3_200_000`;
      `adam` with betas [0.9, 0.99], learning rate 1e-3 with `inverse_sqrt`, batch 128.

    Attributes:
        p_mean: Mean of ln(t), which is normal.
        p_std: Standard deviation of ln(t).
        q: Base of the shares: 1 - r / t goes down with q^-(stage + 1).
        k: With `b` of n(t), which enlarges the intervals at low levels.
        b: Rate of the sigmoid in n(t).
        mapping: `sigmoid` for n(t) as above, `constant` for n(t) = 1.
        limit: Largest 1 - q^-(stage + 1) (0.999 for CIFAR-10 in NVlabs/FastGen); 1 is none.
        stage_images: Images of a stage; by default stage 0 has all.
        c: Of the distance; 0 is the norm itself.
        squared: Take |a - b|^2 as the distance, in place of the norm.
        weighting: w(t, r): `interval` is 1 / (t - r); `edm` is (t^2 + sigma_data^2) / (t sigma_data)^2, EDM's weight,
            which is 1 / c_out^2; `c_out` is 1 / c_out; others that NVlabs/FastGen has are `sqrt_interval`, 1 / sqrt(t -
            r), `sigma_squared`, 1 / t^2, and `uniform`, 1.
        sigma: Noise level at which the generator is sampled in one step.
        sigma_data: Standard deviation of the images.
    """

    p_mean: LogSigma = -1.1
    p_std: Positive = 2.0
    q: Annotated[float, Constraint(gt=1, le=1e6)] = 2.0
    k: NotNegative = 8.0
    b: NotNegative = 1.0
    mapping: Literal["sigmoid", "constant"] = "sigmoid"
    limit: Share = 0.999
    stage_images: Count | None = None
    c: NotNegative = 0.0
    squared: bool = False
    weighting: Literal["interval", "sqrt_interval", "edm", "c_out", "sigma_squared", "uniform"] = "interval"
    sigma: Positive = 80.0
    sigma_data: Positive = 0.5

    publishes: ClassVar[str] = _GENERATOR
    samples_in: ClassVar[int | None] = 1
    preconditioning: ClassVar[str] = "edm"

    def __post_init__(self) -> None:
        if self.squared and self.c:
            raise ValueError(f"c: got {self.c} with squared: true, expected 0. Fix: remove one of them")

    @property
    def samples_at(self) -> float:
        """Noise level at which the generator is sampled."""
        return self.sigma

    def networks(self) -> Mapping[str, Origin]:
        """Return the generator, which makes its own targets."""
        return {_GENERATOR: Pretrained()}

    def phases(self) -> tuple[Phase, ...]:
        """Return the single phase."""
        return (Phase(name=_GENERATOR, trains=_GENERATOR, loss=self.generator_loss),)

    def stage_at(self, images_seen: int) -> int:
        """Return the stage, from 0, of a step that begins at `images_seen`: nothing of it is state."""
        return 0 if self.stage_images is None else images_seen // self.stage_images

    def ratio(self, stage: int) -> float:
        """Return 1 - q^-(stage + 1), at most the limit."""
        return min(1 - self.q ** -(stage + 1), self.limit)

    def lower_levels(self, t: Tensor, *, stage: int) -> Tensor:
        """Return the levels r in [0, t) of levels t [B], float64."""
        t = t.double()
        n = 1 + self.k * torch.sigmoid(-self.b * t) if self.mapping == "sigmoid" else torch.ones_like(t)
        return (t * (1 - (1 - self.ratio(stage)) * n)).clamp(min=0)

    def generator_loss(self, networks: Networks, batch: Batch) -> Loss:
        """Return the weighted distances at levels t and r; `consistency_error` is the mean square of the difference."""
        generator: Callable[..., Tensor] = networks[_GENERATOR]
        images, stage = batch.images, self.stage_at(batch.images_seen)
        t = (self.p_mean + self.p_std * batch.random.normal()).exp()
        r = self.lower_levels(t, stage=stage).float()
        noise = batch.random.normal(*images.shape[1:])
        with torch.no_grad(), _same_masks_after(images.device):
            # A level of 0 has no logarithm: such images are denoised at t, like the others, and not used.
            level = torch.where(r > 0, r, t)
            target = generator(images + _column(level) * noise, level, batch.condition)
            target = torch.where(_column(r) > 0, target, images)
        prediction = generator(images + _column(t) * noise, t, batch.condition)
        losses = self.weight(t, r) * self.distances(prediction, target)
        error = (prediction - target).detach().square().mean()
        observed = {"consistency_error": error, "stage": error.new_tensor(float(stage))}
        return Loss(value=losses.mean(), observed=observed)

    def distances(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return d of each pair of images [B, C, H, W]: [B]."""
        difference = (prediction - target).flatten(1)
        if self.squared or self.c:
            squares = difference.square().sum(dim=1)
            return squares if self.squared else (squares + self.c**2).sqrt() - self.c
        return torch.linalg.vector_norm(difference, dim=1)  # its gradient at 0 is 0

    def weight(self, t: Tensor, r: Tensor) -> Tensor:
        """Return w(t, r) of levels [B]; an interval that rounding has closed counts as the least one."""
        interval = torch.maximum(t - r, torch.finfo(t.dtype).eps * t)
        scale = t * self.sigma_data / (t**2 + self.sigma_data**2).sqrt()  # EDM's c_out
        weights: Mapping[str, Callable[[], Tensor]] = {
            "interval": lambda: 1 / interval,
            "sqrt_interval": lambda: interval.rsqrt(),
            "edm": lambda: scale**-2,
            "c_out": lambda: 1 / scale,
            "sigma_squared": lambda: t**-2,
            "uniform": lambda: torch.ones_like(t),
        }
        return weights[self.weighting]()


def _same_masks_after(device: torch.device) -> AbstractContextManager[None]:
    """Return a context after which torch draws what it drew inside, such as the masks of dropout."""
    devices = [device] if device.type == "cuda" else []
    return torch.random.fork_rng(devices=devices)


def _column(values: Tensor) -> Tensor:
    """Return numbers [B] in the shape [B, 1, 1, 1]."""
    return values[:, None, None, None]
