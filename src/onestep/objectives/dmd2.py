"""DMD2: distribution matching with a GAN loss on inner maps of a score network (arXiv:2405.14867).

A one-step generator follows the difference of two scores, as of objective `variational_score` with `loss: dmd`, and a
GAN loss whose heads take maps of noisy images: of the fake score's encoder, as in the released code
(github.com/tianweiy/DMD2), or of the frozen teacher's, as in NVlabs/FastGen.

Legend: B images, C H W an image; x = G(sigma z; sigma) generated images, y real ones; l a logit of the heads.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from onestep.chain import SIGMA_MIN
from onestep.config.constraints import Constraint, NotNegative, Positive, Share, SmallCount
from onestep.objectives import Batch, Fresh, Loss, Networks, Origin, Phase
from onestep.objectives.variational_score import VariationalScore, distribution_matching

__all__ = ["Dmd2"]

_GENERATOR, _TEACHER, _FAKE, _DISCRIMINATOR = "generator", "teacher", "fake", "discriminator"
_FAKE_GAN_WEIGHT = 0.01  # in the fake score's loss: the released script for ImageNet-64
_STEP = 0.1  # standard deviation of the noise of an approximate penalty: NVlabs/FastGen

_Part = Annotated[tuple[Share, ...], Constraint(min_length=2, max_length=2)]


@dataclass(frozen=True, kw_only=True)
class Dmd2:
    """Train a generator by the difference of two scores and by heads that classify noisy images.

    Its `discriminator` is one on inner maps, `teacher_features`, whose options of noise do not count here. Losses are
    means over channels and pixels, and over images. In each step the fake score and the heads learn, and in each
    `updates`-th one the generator.

    - ImageNet-64 of the paper: the defaults; `adamw` with weight decay 0.01, betas [0.9, 0.999], clip_norm 10, learning
      rates 2e-6; batch 280, 56 M images, no EMA.
    - CIFAR-10 in NVlabs/FastGen: `features: teacher`, `gan_weight: 0.001`, `fake_grid` and `gan_grid: [0.02, 0.98]`;
      learning rates 1e-4, batch 2048. There a step trains one network only, the generator in each fifth.

    Differs from the reference: heads and fake score have optimizers and images of their own, positions are not rounded
    to 1,000, and the conditions of generated images are those of the batch in place of random ones.

    Attributes:
        features: Whose encoder has the maps. `fake`: the GAN loss then trains this encoder, too, and the generator's
            images get noise for it that is not that of the scores. `teacher`: the encoder stays, and one pass of the
            teacher is for the score and for the heads.
        gan_weight: Of softplus(-l(x)) in the generator's loss.
        fake_gan_weight: Of softplus(l(x)) + softplus(-l(y)) in the loss of a fake score with maps; by default 0.01.
        sigma: The only noise level at which the generator is trained and sampled.
        grid: Part of EDM's grid of noise levels from which that of each image is drawn for the scores, by positions
            from 0 (0.002) to 1 (80), uniformly.
        fake_grid: The same for the training of the fake score.
        gan_grid: The same for the heads; None is no noise, and the lowest level.
        updates: Steps of the fake score and the heads for one of the generator.
        r1_gamma: Weight of an approximate penalty on the heads: gamma (l(y_s) - l(y_s + 0.1 n))^2, n a normal image.
            Differs from the reference: there the second image has no noise of the level s, and it is not the default.
    """

    features: Literal["fake", "teacher"] = "fake"
    gan_weight: NotNegative = 3e-3
    fake_gan_weight: NotNegative | None = None
    sigma: Positive = 80.0
    grid: _Part = (0.02, 0.98)
    fake_grid: _Part = (0.0, 1.0)
    gan_grid: _Part | None = (0.0, 1.0)
    updates: SmallCount = 5
    r1_gamma: NotNegative = 0.0

    publishes: ClassVar[str] = _GENERATOR
    samples_in: ClassVar[int | None] = 1
    preconditioning: ClassVar[str] = "edm"

    def __post_init__(self) -> None:
        if self.fake_gan_weight is not None and self.features == "teacher":
            found = f"got {self.fake_gan_weight} with features: teacher"
            raise ValueError(f"fake_gan_weight: {found}, expected none. Fix: remove it")
        if self.gan_grid is not None and not self.gan_grid[0] < self.gan_grid[1]:
            raise ValueError(f"gan_grid: got {list(self.gan_grid)}, expected two positions, the lower one first")
        self._score.phases()  # refuses a sigma or a grid that is none

    @functools.cached_property
    def _score(self) -> VariationalScore:
        """The objective without its GAN loss."""
        return VariationalScore(
            loss="dmd", sigma=self.sigma, grid=self.grid, fake_grid=self.fake_grid, updates=self.updates
        )

    @property
    def samples_at(self) -> float:
        """Noise level of its sampler."""
        return self.sigma

    def networks(self) -> Mapping[str, Origin]:
        """Return the generator, the teacher, the fake score, which begins as the teacher, and the heads."""
        return {
            **self._score.networks(),
            _DISCRIMINATOR: Fresh(family="discriminators", maps_of=self.features),
        }

    def phases(self) -> tuple[Phase, ...]:
        """Return the steps: fake score, heads, then on each `updates`-th step the generator."""
        return (
            Phase(name=_FAKE, trains=_FAKE, loss=self.fake_loss),
            Phase(name=_DISCRIMINATOR, trains=_DISCRIMINATOR, loss=self.discriminator_loss),
            Phase(name=_GENERATOR, trains=_GENERATOR, loss=self.generator_loss, every=self.updates),
        )

    def generator_loss(self, networks: Networks, batch: Batch) -> Loss:
        """Return the mean of DMD's loss plus `gan_weight` softplus(-l(x)), both of new noise."""
        images = self._score.generate(networks[_GENERATOR], batch)
        noisy, sigma = self.noised(images, batch, self.grid)
        if self.features == "teacher":
            teacher, maps = networks[_TEACHER](noisy, sigma, batch.condition, maps="beside")
            logits = self.scored(networks, maps, batch.condition)
        else:
            with torch.no_grad():
                teacher = networks[_TEACHER](noisy, sigma, batch.condition)
            maps = networks[_FAKE](*self.noised(images, batch, self.gan_grid), batch.condition, maps="only")
            logits = self.scored(networks, maps, batch.condition)
        with torch.no_grad():
            fake = networks[_FAKE](noisy, sigma, batch.condition)
        matching = distribution_matching(images, teacher=teacher.detach(), fake=fake).mean()
        adversarial = F.softplus(-logits).mean()
        observed = {
            "score_difference": (fake - teacher).detach().square().mean(),
            "matching": matching.detach(),
            "adversarial": adversarial.detach(),
        }
        return Loss(value=matching + self.gan_weight * adversarial, observed=observed)

    def fake_loss(self, networks: Networks, batch: Batch) -> Loss:
        """Return EDM's loss on generated images, a mean over channels and pixels; with maps also the heads' loss."""
        with torch.no_grad():
            generated = self._score.generate(networks[_GENERATOR], batch)
        loss = self._score.fake_loss_on(generated, networks, batch)
        value = loss.value / generated[0].numel()
        weight = _FAKE_GAN_WEIGHT if self.fake_gan_weight is None else self.fake_gan_weight
        if self.features != "fake" or not weight:
            return Loss(value=value, observed=loss.observed)
        fake, real = self.logits(networks, [generated, batch.images], batch)
        adversarial = (F.softplus(fake) + F.softplus(-real)).mean()
        observed = {**loss.observed, "fake_adversarial": adversarial.detach()}
        return Loss(value=value + weight * adversarial, observed=observed)

    def discriminator_loss(self, networks: Networks, batch: Batch) -> Loss:
        """Return the mean over images of softplus(l(x)) + softplus(-l(y)); with a penalty it is added."""
        with torch.no_grad():
            sets = [self._score.generate(networks[_GENERATOR], batch), batch.images]
        fake, real, *moved = self.logits(networks, sets, batch, constant=True)
        value = (F.softplus(fake) + F.softplus(-real)).mean()
        observed = {"logits_fake": fake.detach().mean(), "logits_real": real.detach().mean()}
        for each in moved:
            penalty = (real - each).square().mean()
            value, observed["r1_penalty"] = value + self.r1_gamma * penalty, penalty.detach()
        return Loss(value=value, observed=observed)

    def logits(
        self, networks: Networks, sets: list[Tensor], batch: Batch, *, constant: bool = False
    ) -> tuple[Tensor, ...]:
        """Return logits of sets of images [B, C, H, W], each with levels and noise of its own, in one pass.

        With `constant` maps, for the training of the heads, and a penalty also those of real images moved a little.
        """
        noisy, sigma = (list(each) for each in zip(*(self.noised(i, batch, self.gan_grid) for i in sets), strict=True))
        if constant and self.r1_gamma:
            noisy.append(noisy[-1] + _STEP * batch.random.normal(*batch.images.shape[1:]))
            sigma.append(sigma[-1])
        condition = None if batch.condition is None else torch.cat([batch.condition] * len(noisy))
        with torch.set_grad_enabled(not constant):
            maps = networks[self.features](torch.cat(noisy), torch.cat(sigma), condition, maps="only")
        return self.scored(networks, maps, condition).split(len(batch.images))

    def scored(self, networks: Networks, maps: Any, condition: Tensor | None) -> Tensor:
        """Return the heads' logits [B, N] of all maps of an encoder."""
        discriminator = networks[_DISCRIMINATOR]
        return discriminator.heads(discriminator.chosen(maps), condition)

    def noised(self, images: Tensor, batch: Batch, grid: tuple[float, ...] | None) -> tuple[Tensor, Tensor]:
        """Return images with noise of levels of a part of the grid, and the levels [B]."""
        if grid is None:
            return images, images.new_full((len(images),), SIGMA_MIN)
        sigma = self._score.noise_levels(batch, grid)
        return images + sigma[:, None, None, None] * batch.random.normal(*images.shape[1:]), sigma
