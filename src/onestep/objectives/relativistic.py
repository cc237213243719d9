"""The relativistic GAN loss of R3GAN, with both zero-centred penalties, for any discriminator (arXiv:2501.05441).

A generated image is compared with a real one of the same condition (arXiv:1807.00734), and the gradient of the
discriminator is penalized at real images, R1, and at generated ones, R2 (arXiv:1801.04406). The paper trains networks
of its own from random weights; as a loss of a pre-trained generator it is a choice of this pipeline.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from onestep.augmentations import prepared, visible
from onestep.config.constraints import Count, Few, NotNegative, Positive, SmallCount
from onestep.objectives import Batch, Fresh, Loss, Networks, Origin, Phase, Pretrained
from onestep.objectives._augmentation import build_pipe, probability_controls
from onestep.objectives.d2o import D2O, Discriminator, squared_slopes_forward_mode

__all__ = ["Relativistic"]

_GENERATOR, _DISCRIMINATOR = "generator", "discriminator"


@dataclass(frozen=True, kw_only=True)
class Relativistic:
    """Minimize softplus(-(D(x) - D(g))) + gamma / 2 (R1 + R2) in D, and softplus(-(D(g) - D(x))) in the generator.

    x is a real image and g = G(sigma z; sigma) a generated one of the same condition. Each logit of x is paired with
    that of g; the loss of an image is their mean within a critic, summed over critics, and a penalty is the squared
    gradient of the sum of all logits, as of objective `d2o`. Heads with batch norm mix the rows of a batch, for which
    the paper's convergence is not proven. Both steps see the same real images; in the paper's code each has its own.

    R3GAN's gamma at the start and at the end, both for images of [-1, 1]: CIFAR-10 0.05 and 0.005, ImageNet-64 1 and
    0.1, FFHQ-64 2 and 0.2, within 20 M images (ImageNet: 200 M). Its learning rate falls likewise to a quarter, and
    Adam's second beta rises from 0.9 to 0.99; a run has a schedule of the former alone (`optimizers`).

    Attributes:
        gamma: Weight of the penalties, at the start.
        gamma_final: The same from `schedule_images` on, reached on half a cosine; by default it stays.
        schedule_images: Length of the schedule of gamma. The probability of an augmentation then rises likewise from
            0 to its own.
        penalty_every: Steps between two penalties; also their gain. 1 is R3GAN, in one backward pass with the loss;
            with more they are lazy, a phase of their own.
        r1_gradient: `double_backward`, or `forward_mode`, for frozen features without a second derivative: see `d2o`.
        sigma: The only noise level at which the generator is trained and sampled.
        augment: An augmentation (a file of augmentations/) with its options, of all images that the discriminator
            receives; the penalties differentiate through it.
        steps: Evaluations of a multi-step generator; by default one.
        middle: Second noise level of two steps; by default 0.8.
    """

    gamma: NotNegative = 0.05  # of CIFAR-10 in github.com/brownvc/R3GAN
    gamma_final: NotNegative | None = None
    schedule_images: Count | None = None
    penalty_every: SmallCount = 1
    r1_gradient: Literal["double_backward", "forward_mode"] = "double_backward"
    sigma: Positive = 80.0
    augment: Mapping[str, Any] | None = None
    steps: Few | None = None
    middle: Positive | None = None

    publishes: ClassVar[str] = _GENERATOR
    # R3GAN's at the end of its schedule, and as of D2O; so is the law.
    betas: ClassVar[tuple[float, float]] = (0.0, 0.99)
    preconditioning: ClassVar[str] = "d2o"

    def __post_init__(self) -> None:
        if probability_controls(self._gan.augment):
            # A number that is added to all logits changes neither loss.
            raise ValueError("augment.target: got a target, expected none: signs of logits have no meaning here")
        if self.augment is not None and self.r1_gradient == "forward_mode":
            raise ValueError("r1_gradient: got forward_mode, expected double_backward with an augmentation")
        if self.gamma_final is not None and self.schedule_images is None:
            raise ValueError(f"schedule_images: got none, expected some for gamma_final: {self.gamma_final}")
        if self.schedule_images is not None and self.gamma_final is None and "probability" not in (self.augment or {}):
            found = f"schedule_images: got {self.schedule_images} with a constant gamma and no probability to augment"
            raise ValueError(f"{found}, expected one of them. Fix: remove it")

    @functools.cached_property
    def _gan(self) -> D2O:
        """What is shared with D2O: the generator's images, augmentations, means over logits."""
        return D2O(sigma=self.sigma, rows_per_rank=1.0, augment=self.augment, steps=self.steps, middle=self.middle)

    @property
    def samples_in(self) -> int:
        """NFE of the generator."""
        return self._gan.samples_in

    def networks(self) -> Mapping[str, Origin]:
        """Return the generator, initialized from the teacher, and the discriminator."""
        return {_GENERATOR: Pretrained(), _DISCRIMINATOR: Fresh(family="discriminators")}

    def phases(self) -> tuple[Phase, ...]:
        """Return the steps: discriminator, generator, and lazy penalties where `penalty_every` is above 1."""
        penalized = self.gamma > 0 or bool(self.gamma_final)
        at_once = penalized and self.penalty_every == 1
        phases = (
            Phase(
                name=_DISCRIMINATOR,
                trains=_DISCRIMINATOR,
                loss=functools.partial(self.discriminator_loss, penalized=at_once),
                second_order=at_once,
            ),
            Phase(name=_GENERATOR, trains=_GENERATOR, loss=self.generator_loss),
        )
        if at_once or not penalized:
            return phases
        penalties = Phase(
            name="penalties",
            trains=_DISCRIMINATOR,
            loss=self.penalty_loss,
            every=self.penalty_every,
            gain=float(self.penalty_every),
            second_order=True,
            lazy_regularizer=True,
        )
        return (*phases, penalties)

    def gamma_at(self, images_seen: int) -> float:
        """Return the weight of the penalties in a step that begins at `images_seen`."""
        if self.gamma_final is None or self.schedule_images is None:
            return self.gamma
        return half_cosine(self.gamma, self.gamma_final, images_seen / self.schedule_images)

    def augmented(self, images: Tensor, batch: Batch) -> Tensor:
        """Return images [B, C, H, W], augmented where configured, with the probability of its schedule."""
        if self.augment is None or self.schedule_images is None or "probability" not in self.augment:
            return self._gan.augmented(images, batch)
        now = half_cosine(0.0, self.augment["probability"], batch.images_seen / self.schedule_images)
        return build_pipe({**self.augment, "probability": now})(images, generator=batch.random).images

    def generator_loss(self, networks: Networks, batch: Batch) -> Loss:
        """Return the mean over images of softplus(D(x) - D(g)), with new noise."""
        discriminator: Discriminator = networks[_DISCRIMINATOR]
        generated = visible(discriminator, self._gan.generate(networks[_GENERATOR], batch), batch)
        both = torch.cat([self.augmented(each, batch) for each in (generated, self.real(discriminator, batch))])
        fakes, reals = prepared(discriminator, both, batch).chunk(2)
        fake = discriminator(fakes, batch.condition)
        with torch.no_grad():
            real = discriminator(reals, batch.condition)
        return Loss(value=self._gan.over_rows(F.softplus(real - fake), splits=discriminator.splits))

    def discriminator_loss(self, networks: Networks, batch: Batch, *, penalized: bool) -> Loss:
        """Return the mean over images of softplus(D(g) - D(x)), and gamma / 2 (R1 + R2) where it is penalized."""
        discriminator: Discriminator = networks[_DISCRIMINATOR]
        with torch.no_grad():
            generated = visible(discriminator, self._gan.generate(networks[_GENERATOR], batch), batch)
        if penalized:
            fake, real, penalties = self.penalized(discriminator, generated, batch)
        else:
            shown = generated, self.real(discriminator, batch)
            (fake, real), penalties = self.paired(discriminator, shown, batch), None
        value = self._gan.over_rows(F.softplus(fake - real), splits=discriminator.splits)
        observed = {
            "logits_fake": fake.detach().mean(),
            "logits_real": real.detach().mean(),
            "relative": (real - fake).detach().mean(),
        }
        if penalties is not None:
            value, observed = value + penalties.value, {**observed, **penalties.observed}
        return Loss(value=value, observed=observed)

    def penalty_loss(self, networks: Networks, batch: Batch) -> Loss:
        """Return gamma / 2 (R1 + R2) of real images and of generated ones, of new noise."""
        discriminator: Discriminator = networks[_DISCRIMINATOR]
        with torch.no_grad():
            generated = visible(discriminator, self._gan.generate(networks[_GENERATOR], batch), batch)
        _, _, penalties = self.penalized(discriminator, generated, batch)
        return penalties

    @torch.no_grad()
    def real(self, discriminator: Discriminator, batch: Batch) -> Tensor:
        """Return the real images as the discriminator sees them."""
        return visible(discriminator, batch.images, batch)

    def paired(
        self, discriminator: Discriminator, images: tuple[Tensor, Tensor], batch: Batch
    ) -> tuple[Tensor, Tensor]:
        """Return the logits [B, N] of two sets of images: the frozen part takes them in one batch, as of D2O."""
        both = torch.cat([self.augmented(each, batch) for each in images])
        features = discriminator.frozen_features(prepared(discriminator, both, batch))
        halves = [[tuple(m.chunk(2)[index] for m in maps) for maps in features] for index in range(2)]
        one, other = (discriminator.heads(each, batch.condition) for each in halves)
        return one, other

    def penalized(self, discriminator: Discriminator, generated: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Loss]:
        """Return the logits of generated and of real images, and gamma / 2 (R1 + R2).

        Logits and penalties share the pass through augmentation and network, as in the reference.
        """
        images = generated, self.real(discriminator, batch)
        if self.r1_gradient == "forward_mode":
            both = prepared(discriminator, torch.cat(images), batch)
            squared = [
                squared_slopes_forward_mode(discriminator, each, condition=batch.condition) for each in both.chunk(2)
            ]
            fake, real = (discriminator(each, batch.condition) for each in both.chunk(2))
        else:
            fakes, reals = (each.detach().requires_grad_() for each in images)
            with sdpa_kernel(SDPBackend.MATH):  # the other kernels of a GPU have no second derivative
                fake, real = self.paired(discriminator, (fakes, reals), batch)
            slopes = torch.autograd.grad(fake.sum() + real.sum(), (fakes, reals), create_graph=True)
            squared = [slope.square().sum() for slope in slopes]
        r2, r1 = (each / len(generated) for each in squared)
        observed = {"r1_penalty": r1.detach(), "r2_penalty": r2.detach()}
        return fake, real, Loss(value=self.gamma_at(batch.images_seen) / 2 * (r1 + r2), observed=observed)


def half_cosine(first: float, last: float, share: float) -> float:
    """Return the value at a share of a schedule that goes from `first` to `last`, and stays there."""
    return last + (first - last) * (1 + math.cos(math.pi * min(share, 1.0))) / 2
