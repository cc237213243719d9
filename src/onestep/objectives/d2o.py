"""D2O: fine-tune a pre-trained denoiser into a one-step generator with a GAN loss (arXiv:2506.09376, 2405.20750)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, ClassVar, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from onestep.arithmetic import dual_numbers
from onestep.augmentations import prepared, visible
from onestep.chain import chain_levels, chained
from onestep.config.constraints import Few, NotNegative, Positive, SmallCount
from onestep.objectives import Batch, Fresh, Loss, Networks, Origin, Phase, Pretrained
from onestep.objectives._augmentation import SIGN_OF_REAL_LOGITS, build_pipe, pipe_of, probability_controls

__all__ = ["D2O"]


class Discriminator(Protocol):
    """The part of the discriminators' contract that the losses use."""

    splits: tuple[int, ...]

    def __call__(self, images: Tensor, condition: Tensor | None) -> Tensor:
        """Return logits [B, N] of images [B, C, H, W]."""

    def frozen_features(self, images: Tensor) -> Sequence[Sequence[Tensor]]:
        """Return the frozen feature maps, a tuple per critic."""

    def heads(self, features: Sequence[Sequence[Tensor]], condition: Tensor | None) -> Tensor:
        """Return logits [B, N] of feature maps."""


@dataclass(frozen=True, kw_only=True)
class D2O:
    """Non-saturating or hinge GAN loss with a lazy R1 penalty on real images; no distillation term.

    The loss of an image is the mean of its logits within a critic (`Discriminator.splits`), summed over critics. D2O-F
    is this objective on a network with frozen convolutions.

    Attributes:
        loss: `non_saturating` (arXiv:1406.2661, section 3) or `hinge` (arXiv:1705.02894).
        sigma: The only noise level at which the generator is trained and sampled.
        rows_per_rank: Scale of the two adversarial losses: the images per GPU of the run to reproduce. The reference
            sums them over the images of one GPU, but averages the penalty; here all three are means over images.
        r1_gamma: Weight of the gradient penalty.
        r1_every: Steps between two gradient penalties; also their gain.
        r1_gradient: `double_backward`, or `forward_mode`: equal up to rounding, without a second derivative of the
            frozen features, so faster for large backbones and possible with fused attention. It needs their
            forward-mode derivative; torch 2.12 has none for GroupNorm in channels_last.
        augment: An augmentation (a file of augmentations/) with its options, of all images that the discriminator
            receives except in the penalty. With a `target`, its probability is adaptive. In the paper: none.
        steps: Evaluations of a multi-step generator, a chain with gradients through all of it; by default one.
        middle: Second noise level of two steps; by default 0.8.
        observe: `extremes` adds the largest absolute logit of a step to the log, as `logit_max`; None: means alone.
    """

    # The constants of the released training script for CIFAR-10 (github.com/Zyriix/D2O, train.sh and its loss).
    loss: Literal["non_saturating", "hinge"] = "non_saturating"
    sigma: Positive = 80.0
    rows_per_rank: Positive = 64.0  # 256 images on 4 GPUs
    r1_gamma: NotNegative = 1e-4
    r1_every: SmallCount = 16
    r1_gradient: Literal["double_backward", "forward_mode"] = "double_backward"
    augment: Mapping[str, Any] | None = None
    steps: Few | None = None
    middle: Positive | None = None
    observe: Literal["extremes"] | None = None

    publishes: ClassVar[str] = "generator"
    # Of the same script: no momentum for Adam, and a boundary in the law so that D(x, sigma) is the generator.
    betas: ClassVar[tuple[float, float]] = (0.0, 0.99)
    preconditioning: ClassVar[str] = "d2o"

    def __post_init__(self) -> None:
        for name, choices in (("loss", ("non_saturating", "hinge")), ("r1_gradient", _SQUARED_SLOPES)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} {getattr(self, name)!r}: expected {' or '.join(choices)}")
        for name in ("sigma", "rows_per_rank", "r1_every"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} {getattr(self, name)}: expected a positive number")
        chain_levels(self.samples_in, sigma=self.sigma, middle=self.middle)
        if self.augment is not None:
            build_pipe(self.augment)

    @property
    def samples_in(self) -> int:
        """NFE of the generator."""
        return 1 if self.steps is None else self.steps

    def networks(self) -> Mapping[str, Origin]:
        """Return the generator, initialized from the teacher, and the discriminator."""
        return {"generator": Pretrained(), "discriminator": Fresh(family="discriminators")}

    def phases(self) -> tuple[Phase, ...]:
        """Return the steps: generator, discriminator, and the penalty on each `r1_every`-th step except step 0."""
        controls = probability_controls(self.augment)
        return (
            Phase(name="generator", trains="generator", loss=self.generator_loss),
            Phase(name="discriminator", trains="discriminator", loss=self.discriminator_loss, controls=controls),
            Phase(
                name="r1",
                trains="discriminator",
                loss=self.r1_loss,
                every=self.r1_every,
                gain=float(self.r1_every),
                second_order=True,
                lazy_regularizer=True,
            ),
        )

    def generate(self, generator: Callable[..., Tensor], batch: Batch) -> Tensor:
        """Return images [B, C, H, W] from new noise, with the condition of the real images: G(sigma z; sigma)."""
        levels = chain_levels(self.samples_in, sigma=self.sigma, middle=self.middle)
        noise = batch.random.normal(*batch.images.shape[1:])
        return chained(generator, self.sigma * noise, batch.condition, levels=levels)

    def augmented(self, images: Tensor, batch: Batch) -> Tensor:
        """Return images [B, C, H, W], augmented where configured."""
        pipe = None if self.augment is None else pipe_of(self.augment, batch=batch)
        return images if pipe is None else pipe(images, generator=batch.random).images

    def generator_loss(self, networks: Networks, batch: Batch) -> Loss:
        """Return the generator's loss on new noise. non_saturating: softplus(-D(G(z))); hinge: -D(G(z))."""
        discriminator: Discriminator = networks["discriminator"]
        generated = visible(discriminator, self.generate(networks["generator"], batch), batch)
        logits = discriminator(prepared(discriminator, self.augmented(generated, batch), batch), batch.condition)
        losses = F.softplus(-logits) if self.loss == "non_saturating" else -logits
        return Loss(value=self.over_rows(losses, splits=discriminator.splits))

    def discriminator_loss(self, networks: Networks, batch: Batch) -> Loss:
        """Return the discriminator's loss on generated images, of new noise, and on real images.

        non_saturating: softplus(D(G(z))) + softplus(-D(x)); hinge: relu(1 + D(G(z))) + relu(1 - D(x)).
        The frozen features take both sets in one batch, the heads one after the other, with batch statistics of each.
        """
        discriminator: Discriminator = networks["discriminator"]
        rows = len(batch.images)
        with torch.no_grad():
            sets = self.generate(networks["generator"], batch), batch.images
            both = torch.cat([self.augmented(visible(discriminator, each, batch), batch) for each in sets])
            features = discriminator.frozen_features(prepared(discriminator, both, batch))
        fake = discriminator.heads([[m[:rows] for m in maps] for maps in features], batch.condition)
        real = discriminator.heads([[m[rows:] for m in maps] for maps in features], batch.condition)
        losses = self.adversarial(fake) + self.adversarial(-real)
        observed = {"logits_fake": fake.detach().mean(), "logits_real": real.detach().mean()}
        if self.augment is not None:
            observed[SIGN_OF_REAL_LOGITS] = real.detach().sign().mean()
        if self.observe == "extremes":
            observed["logit_max"] = torch.cat([fake, real]).detach().abs().amax()
        return Loss(value=self.over_rows(losses, splits=discriminator.splits), observed=observed)

    def adversarial(self, logits: Tensor) -> Tensor:
        """Return the discriminator's loss of each logit whose target is low."""
        return F.softplus(logits) if self.loss == "non_saturating" else F.relu(1 + logits)

    def r1_loss(self, networks: Networks, batch: Batch) -> Loss:
        """Return gamma / 2 times the mean of |d(sum of all logits)/d(real image)|^2: R1 (arXiv:1801.04406, Eq. 9)."""
        discriminator: Discriminator = networks["discriminator"]
        images = prepared(discriminator, visible(discriminator, batch.images, batch), batch)
        squared = _SQUARED_SLOPES[self.r1_gradient](discriminator, images, condition=batch.condition)
        penalty = squared / len(batch.images)
        return Loss(value=penalty * self.r1_gamma / 2, observed={"r1_penalty": penalty.detach()})

    def over_rows(self, losses: Tensor, *, splits: Sequence[int]) -> Tensor:
        """Return the scalar of losses [B, N]: mean in a critic, sum over critics, mean over images, times the scale."""
        critics = losses.split(list(splits), dim=1)
        return self.rows_per_rank * reduce(torch.add, [critic.mean(dim=1) for critic in critics]).mean()


def squared_slopes(discriminator: Discriminator, images: Tensor, *, condition: Tensor | None) -> Tensor:
    """Return the sum over images of |d(sum of all logits)/d(image)|^2, a differentiable scalar."""
    images = images.detach().requires_grad_()
    logits = discriminator(images, condition)
    (slope,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return slope.square().sum(dim=(1, 2, 3)).sum()


def squared_slopes_forward_mode(discriminator: Discriminator, images: Tensor, *, condition: Tensor | None) -> Tensor:
    """Return the same as `squared_slopes`, differentiable with respect to the heads only.

    With F the frozen features, J their Jacobian at the images and u = d(sum of all logits)/dF, the slope is g = J^T u.
    Only u depends on trained weights, so d|g|^2 = 2 <J g, du>: one product with J^T (a backward pass) and one with J
    (a forward pass of dual numbers) replace the second derivative of F. As <u, J g> = |g|^2, the scalar
    2 <u, J g> - |g|^2, with J g and the last term constant, has both the value and the gradient.
    """
    images = images.detach().requires_grad_()
    features = discriminator.frozen_features(images)
    leaves = [[m.detach().requires_grad_() for m in maps] for maps in features]
    logits = discriminator.heads(leaves, condition)
    upper = torch.autograd.grad(logits.sum(), _flat(leaves), create_graph=True)
    (slope,) = torch.autograd.grad(_flat(features), images, grad_outputs=[u.detach() for u in upper])
    with dual_numbers():
        moved = discriminator.frozen_features(forward_ad.make_dual(images.detach(), slope))
        tangents = [forward_ad.unpack_dual(m).tangent for m in _flat(moved)]
    along = reduce(torch.add, [(u * tangent).sum() for u, tangent in zip(upper, tangents, strict=True)])
    return 2 * along - slope.square().sum()


def _flat(features: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    return [m for maps in features for m in maps]


_SQUARED_SLOPES = {"double_backward": squared_slopes, "forward_mode": squared_slopes_forward_mode}
