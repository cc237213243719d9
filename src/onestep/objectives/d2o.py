"""D2O: a pre-trained denoiser becomes a one-step generator by a GAN objective alone (arXiv:2506.09376, 2405.20750)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from onestep.objectives import Batch, Loss, Phase, Players
from onestep.objectives._augmentation import SIGN_OF_REAL_LOGITS, build_pipe, pipe_of, probability_controls

__all__ = ["D2O"]


@dataclass(frozen=True, kw_only=True)
class D2O:
    """Generator against discriminator, with a gradient penalty on real images in a lazy step of its own.

    The discriminator's logits come in groups, one for each independent critic (its `splits`): a row's loss is the mean
    within a critic, summed over critics. D2O-F is this objective on a network with frozen convolutions.

    Attributes:
        loss: `non_saturating` (arXiv:1406.2661, section 3) or `hinge` (arXiv:1705.02894).
        sigma: Noise level from which the generator makes an image in one step; at this level and no other it trains.
        rows_per_rank: Scale of the two adversarial losses. The reference sums over the rows that one GPU holds, and
            takes the mean over GPUs, so that its gradients depend on the number of GPUs; the penalty is a mean over
            rows, so their ratio does, too. Here all are means over rows, and the adversarial ones are multiplied by
            this number: that of rows on each GPU in the run to be reproduced, on whatever number of GPUs this one runs.
        r1_gamma: Weight of the gradient penalty.
        r1_every: Steps between two gradient penalties, which also multiplies them.
        r1_gradient: How the penalty is differentiated; the numbers agree up to rounding. `double_backward`: as the
            formula reads. `forward_mode`: without a second derivative of the frozen features, which need not have
            one then (fused attention has none), and quicker where they are large. They need a derivative in forward
            mode; torch 2.12 stops at a GroupNorm with channels innermost.
        augment: A choice of augmentations/ with its options, by which all images that the discriminator sees are
            changed, each by a draw of its own, but for those of the gradient penalty. Where it has a `target`, its
            probability is steered by the signs of the logits of real images. Default, and in the paper: none.
    """

    loss: Literal["non_saturating", "hinge"]
    sigma: float
    rows_per_rank: float
    r1_gamma: float
    r1_every: int
    r1_gradient: Literal["double_backward", "forward_mode"] = "double_backward"
    augment: Mapping[str, Any] | None = None

    publishes: ClassVar[str] = "generator"
    needs: ClassVar[tuple[str, ...]] = ("generator", "discriminator")

    def __post_init__(self) -> None:
        if self.loss not in ("non_saturating", "hinge"):
            raise ValueError(f"loss {self.loss!r}: expected non_saturating or hinge")
        if self.r1_gradient not in _SQUARED_SLOPES:
            raise ValueError(f"r1_gradient {self.r1_gradient!r}: expected {' or '.join(_SQUARED_SLOPES)}")
        for name in ("sigma", "rows_per_rank", "r1_every"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} {getattr(self, name)}: expected a positive number")
        if self.augment is not None:
            build_pipe(self.augment)

    def phases(self) -> tuple[Phase, ...]:
        """Return the steps: generator, discriminator, and the penalty on each `r1_every`-th step but the first."""
        return (
            Phase(name="generator", trains="generator", loss=self.generator_loss),
            Phase(
                name="discriminator",
                trains="discriminator",
                loss=self.discriminator_loss,
                controls=probability_controls(self.augment),
            ),
            Phase(
                name="r1",
                trains="discriminator",
                loss=self.r1_loss,
                every=self.r1_every,
                gain=float(self.r1_every),
                second_order=True,
            ),
        )

    def generate(self, generator: nn.Module, batch: Batch) -> Tensor:
        """Return images [B, C, H, W] of new noise, under the labels of the real rows: G(sigma z; sigma)."""
        noise = batch.random.normal(*batch.images.shape[1:])
        return generator(self.sigma * noise, noise.new_full((len(noise),), self.sigma), batch.labels)

    def augmented(self, images: Tensor, batch: Batch) -> Tensor:
        """Return images [B, C, H, W], changed at random if they are to be."""
        return (
            images
            if self.augment is None
            else pipe_of(self.augment, batch=batch)(images, generator=batch.random).images
        )

    def generator_loss(self, players: Players, batch: Batch) -> Loss:
        """Return what makes generated images score high; the discriminator's parameters are held by the training step.

        non_saturating: softplus(-D(G(z))); hinge: -D(G(z)).
        """
        discriminator = players["discriminator"]
        generated = self.generate(players["generator"], batch)
        logits = discriminator(self.augmented(generated, batch), batch.labels)
        losses = F.softplus(-logits) if self.loss == "non_saturating" else -logits
        return Loss(value=self.over_rows(losses, discriminator=discriminator))

    def discriminator_loss(self, players: Players, batch: Batch) -> Loss:
        """Return what tells generated images, of noise newly drawn, from real ones.

        non_saturating: softplus(D(G(z))) + softplus(-D(x)); hinge: relu(1 + D(G(z))) + relu(1 - D(x)).
        Both pass the frozen features together, where rows do not see each other, and are judged apart, generated
        images first: each has its own batch statistics.
        """
        discriminator, rows = players["discriminator"], len(batch.images)
        with torch.no_grad():
            generated = self.generate(players["generator"], batch)
            both = torch.cat([self.augmented(generated, batch), self.augmented(batch.images, batch)])
            features = discriminator.features(both)
        fake = discriminator.judge([[m[:rows] for m in maps] for maps in features], batch.labels)
        real = discriminator.judge([[m[rows:] for m in maps] for maps in features], batch.labels)
        losses = self.adversarial(fake) + self.adversarial(-real)
        observed = {"logits_fake": fake.detach().mean(), "logits_real": real.detach().mean()}
        if self.augment is not None:
            observed[SIGN_OF_REAL_LOGITS] = real.detach().sign().mean()
        return Loss(value=self.over_rows(losses, discriminator=discriminator), observed=observed)

    def adversarial(self, logits: Tensor) -> Tensor:
        """Return the discriminator's loss of each logit that should be low."""
        return F.softplus(logits) if self.loss == "non_saturating" else F.relu(1 + logits)

    def r1_loss(self, players: Players, batch: Batch) -> Loss:
        """Return gamma / 2 times the mean over rows of |d(sum of all logits)/d(image)|^2 on real images.

        The R1 penalty of Mescheder et al. (arXiv:1801.04406, Eq. 9). The reference draws noise here, too, in vain.
        """
        squared = _SQUARED_SLOPES[self.r1_gradient](players["discriminator"], batch.images, labels=batch.labels)
        penalty = squared / len(batch.images)
        return Loss(value=penalty * self.r1_gamma / 2, observed={"r1_penalty": penalty.detach()})

    def over_rows(self, losses: Tensor, *, discriminator: nn.Module) -> Tensor:
        """Return the scalar of losses [B, N]: mean in a critic, sum over critics, mean over rows, times the scale."""
        critics = losses.split(discriminator.splits, dim=1)
        return self.rows_per_rank * sum(critic.mean(dim=1) for critic in critics).mean()


def squared_slopes(discriminator: nn.Module, images: Tensor, *, labels: Tensor | None) -> Tensor:
    """Return the sum over rows of |d(sum of all logits)/d(image)|^2, a scalar with a gradient."""
    images = images.detach().requires_grad_()
    logits = discriminator(images, labels)
    (slope,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return slope.square().sum(dim=(1, 2, 3)).sum()


def squared_slopes_forward_mode(discriminator: nn.Module, images: Tensor, *, labels: Tensor | None) -> Tensor:
    """Return what `squared_slopes` returns, its gradient for the trained part alone.

    With F the frozen features, J their Jacobian at the images and u = d(sum of all logits)/dF, the slope is g = J^T u.
    Only u depends on what is trained, so d|g|^2 = 2 <J g, du>: one product with J^T (a backward pass) and one with J
    (a forward pass of dual numbers) stand in for the second derivative of F. As <u, J g> = |g|^2, the scalar
    2 <u, J g> - |g|^2, J g and the last term held, has the value as well as the gradient.
    """
    images = images.detach().requires_grad_()
    features = discriminator.features(images)
    leaves = [[m.detach().requires_grad_() for m in maps] for maps in features]
    logits = discriminator.judge(leaves, labels)
    upper = torch.autograd.grad(logits.sum(), _flat(leaves), create_graph=True)
    (slope,) = torch.autograd.grad(_flat(features), images, grad_outputs=[u.detach() for u in upper])
    # `no_grad` is of backward passes; dual numbers pass under it. Of torch's attentions the plain one alone takes them.
    with torch.no_grad(), forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH):
        moved = discriminator.features(forward_ad.make_dual(images.detach(), slope))
        tangents = [forward_ad.unpack_dual(m).tangent for m in _flat(moved)]
    along = sum((u * tangent).sum() for u, tangent in zip(upper, tangents, strict=True))
    return 2 * along - slope.square().sum()


def _flat(features: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    return [m for maps in features for m in maps]


_SQUARED_SLOPES = {"double_backward": squared_slopes, "forward_mode": squared_slopes_forward_mode}
