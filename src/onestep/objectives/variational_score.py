"""Variational score distillation: a one-step generator from a teacher's scores and those of its own images.

Losses of published methods: Diff-Instruct (arXiv:2305.18455), SiD (arXiv:2404.04057), DMD in the form of DMD2
(arXiv:2405.14867) and f-distill (arXiv:2502.15681); constants are those of their released code. Each compares two
denoisers of generated images with noise: the frozen teacher D, and F, a copy of it that is trained on generated images,
the fake score. Where the score of images at a noise level s is (D(x_s; s) - x_s) / s^2, the difference of two denoisers
is s^2 times that of two scores.

Legend: B images, C H W an image; x = G(sigma z; sigma) generated images; x_s = x + s e, with normal noise e.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from onestep import components
from onestep.config.constraints import Constraint, LogSigma, Positive, Share, SmallCount
from onestep.objectives import Batch, Loss, Networks, Origin, Phase, Pretrained, TeacherCopy
from onestep.objectives._divergences import DIVERGENCES
from onestep.objectives._moves import Grid
from onestep.objectives.edm import Edm

__all__ = ["VariationalScore"]

_GENERATOR, _TEACHER, _FAKE, _RATIO = "generator", "teacher", "fake", "ratio"
_LEAST_SCALE = 1e-6  # of the normalizations by the distance to the teacher's image

_Part = Annotated[tuple[Share, ...], Constraint(min_length=2, max_length=2)]


@dataclass(frozen=True, kw_only=True)
class VariationalScore:
    """Train a generator by the difference of two scores: the baseline that density ratios do without.

    Real images are used by the ratio network of a weight alone, else only their conditions. Settings of the methods:

    - Diff-Instruct on CIFAR-10: `loss: diff_instruct`, `sigma: 1.0`, no `grid`; learning rates 1e-5, batch 128.
    - SiD on CIFAR-10: `loss: sid`, `alpha: 1.2`, `sigma: 2.5`, `grid: [0.0, 0.8]`, `scale: 100.0`; learning rates 1e-5,
      betas [0, 0.999], batch 256.
    - DMD2 on ImageNet-64: `loss: dmd`, `grid: [0.02, 0.98]`, `fake_grid: [0.0, 1.0]`, `updates: 5`; learning rates
      2e-6, batch 280; its GAN loss is in objective `dmd2`. Differs from the reference: positions are not rounded to
      its 1,000.
    - f-distill: DMD2 with `ratio: {name: density_ratio, divergence: forward_kl, noise: dmd2, normalise: 0.5}`, whose
      divergence is a choice. Its ratio is that of the discriminator of DMD2's GAN loss, here of a network of its own.

    Attributes:
        loss: `diff_instruct`, the gradient of the integral of KL divergences; `sid`, the same direction and the scores'
            own derivatives, from score identities; `dmd`, that of `diff_instruct` in units of each image's distance to
            the teacher's.
        ratio: Objective `density_ratio` with its options, whose h(r) is a weight of each image's direction in `dmd`,
            and which trains the ratio network, the block `networks.ratio` of the run. None: no weight, the same as that
            of the divergence `reverse_kl`.
        alpha: Weight of the squared difference in `sid`, which alone has it.
        sigma: The only noise level at which the generator is trained and sampled.
        grid: Part of EDM's grid of noise levels from which that of each image is drawn, by positions from 0 (0.002) to
            1 (80), uniformly. None: ln(s) is normal, as in EDM's training.
        fake_grid: The same for the training of the fake score.
        p_mean: Mean of ln(s), where there is no grid.
        p_std: Standard deviation of ln(s).
        sigma_data: Standard deviation of the images, in the weight of the fake score's loss.
        scale: Factor of the generator's loss; without effect under Adam, up to its `eps`.
        updates: Steps of the fake score for one of the generator, which then begins after as many. The images of all
            these steps count as seen.
    """

    loss: Literal["diff_instruct", "sid", "dmd"] = "diff_instruct"
    ratio: Mapping[str, Any] | None = None
    alpha: Positive | None = None
    sigma: Positive = 2.5
    grid: _Part | None = None
    fake_grid: _Part | None = None
    p_mean: LogSigma = -1.2  # this and the two below: EDM's, which are Diff-Instruct's, too
    p_std: Positive = 1.2
    sigma_data: Positive = 0.5
    scale: Positive = 1.0
    updates: SmallCount = 1

    publishes: ClassVar[str] = _GENERATOR
    samples_in: ClassVar[int | None] = 1
    # SiD's: no momentum, and as of Diff-Instruct the teacher's own law.
    betas: ClassVar[tuple[float, float]] = (0.0, 0.999)
    preconditioning: ClassVar[str] = "edm"
    parts: ClassVar[Mapping[str, str]] = {"ratio": "objectives"}

    def __post_init__(self) -> None:
        if (self.alpha is not None) != (self.loss == "sid"):
            expected = "a weight, SiD's is 1.2 on CIFAR-10" if self.loss == "sid" else "none. Fix: remove it"
            raise ValueError(f"alpha: got {self.alpha} with loss: {self.loss}, expected {expected}")
        for name in ("grid", "fake_grid"):
            part = getattr(self, name)
            if part is not None and not part[0] < part[1]:
                raise ValueError(f"{name}: got {list(part)}, expected two positions, the lower one first")
        if self._ratio is None:
            return
        if self.loss != "dmd" or self.ratio is None or self.ratio["name"] != "density_ratio":
            expected = "objective density_ratio with loss: dmd, or none"
            raise ValueError(f"ratio: got {self.ratio} with loss: {self.loss}, expected {expected}")
        for name, own in (("sigma", self.sigma), ("ratio_steps", 1)):
            if (found := getattr(self._ratio, name)) != own:
                raise ValueError(f"ratio.{name}: got {found}, expected {own}, as this objective generates and updates")

    @property
    def samples_at(self) -> float:
        """Noise level of its sampler."""
        return self.sigma

    def networks(self) -> Mapping[str, Origin]:
        """Return the generator, the teacher, the fake score, which begins as the teacher, and a weight's ratio network.

        The fake score has no dropout, because it is in training mode also where the generator learns from it.
        """
        return {
            _GENERATOR: Pretrained(),
            _TEACHER: TeacherCopy(frozen=True),
            _FAKE: TeacherCopy(frozen=False, dropout=0.0),
            **({} if self._ratio is None else {_RATIO: self._ratio.networks()[_RATIO]}),
        }

    def phases(self) -> tuple[Phase, ...]:
        """Return the steps: fake score, a weight's ratio network, then on each `updates`-th step the generator."""
        fake = Phase(name=_FAKE, trains=_FAKE, loss=self.fake_loss)
        generator = Phase(name=_GENERATOR, trains=_GENERATOR, loss=self.generator_loss, every=self.updates)
        if self._ratio is None:
            return fake, generator
        weighted, *ratio = self._ratio.phases()
        return fake, *ratio, replace(generator, controls=weighted.controls)

    def generate(self, generator: Callable[..., Tensor], batch: Batch) -> Tensor:
        """Return images [B, C, H, W] from new noise, with the condition of the real images: G(sigma z; sigma)."""
        noise = batch.random.normal(*batch.images.shape[1:])
        return generator(self.sigma * noise, noise.new_full((len(noise),), self.sigma), batch.condition)

    def fake_loss(self, networks: Networks, batch: Batch) -> Loss:
        """Return EDM's loss (`onestep.objectives.edm`) of the fake score on generated images, which are constant."""
        with torch.no_grad():
            generated = self.generate(networks[_GENERATOR], batch)
        return self.fake_loss_on(generated, networks, batch)

    def fake_loss_on(self, generated: Tensor, networks: Networks, batch: Batch) -> Loss:
        """Return the same on given images [B, C, H, W]."""
        fakes = replace(batch, images=generated)
        return self._edm.loss_at(self.noise_levels(fakes, self.fake_grid), networks[_FAKE], fakes)

    def generator_loss(self, networks: Networks, batch: Batch) -> Loss:
        """Return `scale` times the mean over images of the loss, by each image's difference of two denoisers.

        An image's loss is the sum over channels and pixels; of `dmd`, as in its reference, the mean.
        """
        images = self.generate(networks[_GENERATOR], batch)
        sigma = self.noise_levels(batch, self.grid)
        noise = batch.random.normal(*images.shape[1:])
        noisy = images + sigma[:, None, None, None] * noise
        with torch.set_grad_enabled(self.loss == "sid"):
            teacher, fake = (networks[role](noisy, sigma, batch.condition) for role in (_TEACHER, _FAKE))
        observed: dict[str, Tensor] = {"score_difference": (fake - teacher).detach().square().mean()}
        if self.loss == "dmd":
            weight, driving = self.weights(networks, noisy, sigma, batch)
            losses = distribution_matching(images, teacher=teacher, fake=fake, weight=weight).flatten(1).mean(dim=1)
            observed |= driving
        elif self.alpha is not None:
            losses = score_identity(images, teacher=teacher, fake=fake, alpha=self.alpha).flatten(1).sum(dim=1)
        else:
            losses = integral_kl(images, teacher=teacher, fake=fake).flatten(1).sum(dim=1)
        return Loss(value=self.scale * losses.mean(), observed=observed)

    @torch.no_grad()
    def weights(
        self, networks: Networks, noisy: Tensor, sigma: Tensor, batch: Batch
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Return h(r) at noisy images [B], None without a ratio, and what drives its normalisation."""
        if self._ratio is None:
            return None, {}
        log_ratios = networks[_RATIO](noisy, sigma, batch.condition)
        weights, driving = self._ratio.weights(log_ratios, sigma, batch)
        if weights is None:
            clip = self._ratio.clip
            weights = DIVERGENCES[self._ratio.divergence].h(log_ratios.clamp(-clip, clip).exp())
        return weights, driving

    def noise_levels(self, batch: Batch, grid: tuple[float, ...] | None) -> Tensor:
        """Return a noise level of each image, float32 [B]: from a part of EDM's grid, or log-normal without one."""
        if grid is None:
            return self._edm.noise_levels(batch)
        low, high = grid
        return Grid(steps=1).sigma(low + (high - low) * batch.random.uniform()).float()

    @functools.cached_property
    def _ratio(self) -> Any:
        """The objective of `ratio`; without torch, its outline."""
        return None if self.ratio is None else components.build_part("objectives", self.ratio)

    @functools.cached_property
    def _edm(self) -> Edm:
        return Edm(p_mean=self.p_mean, p_std=self.p_std, sigma_data=self.sigma_data)


def integral_kl(images: Tensor, *, teacher: Tensor, fake: Tensor) -> Tensor:
    """Return Diff-Instruct's loss of each entry [B, C, H, W]: (F(x_s) - D(x_s)) x, with the difference constant.

    Its gradient is that of the KL divergence of generated from real images with noise s, weighted with s^2, since
    (F - D) / s^2 is the score of the generated images minus that of the real ones (arXiv:2305.18455).
    """
    return (fake - teacher).detach() * images


def distribution_matching(images: Tensor, *, teacher: Tensor, fake: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return DMD's loss of each entry [B, C, H, W]: half of |x - (x - d)|^2, where the target x - d is constant.

    d = (F(x_s) - D(x_s)) / mean|x - D(x_s)|, with the mean over an image. A `weight` for each image [B] multiplies d:
    h(r) of the ratio r of the densities of real and generated images is f-distill's (arXiv:2502.15681).
    """
    direction = (fake - teacher) / _distance(images, teacher)
    if weight is not None:
        direction = weight[:, None, None, None] * direction
    return 0.5 * (images - (images - direction).detach()).square()


def score_identity(images: Tensor, *, teacher: Tensor, fake: Tensor, alpha: float) -> Tensor:
    """Return SiD's loss of each entry [B, C, H, W]: (D - F) ((D - x) - alpha (D - F)) / mean|x - D|.

    Gradients flow through the images and both denoisers; the denominator is constant. Without it the mean is
    (1 - alpha) E|D - F|^2 where F is exact (arXiv:2404.04057).
    """
    difference = teacher - fake
    return difference * ((teacher - images) - alpha * difference) / _distance(images, teacher)


def _distance(images: Tensor, denoised: Tensor) -> Tensor:
    """Return the mean of |x - D(x_s)| over each image, a constant [B, 1, 1, 1].

    As in f-distill's code; SiD's has a lower limit of 1e-5 in place of the addend, DMD's has neither.
    """
    return (images - denoised).detach().abs().mean(dim=(1, 2, 3), keepdim=True) + _LEAST_SCALE
