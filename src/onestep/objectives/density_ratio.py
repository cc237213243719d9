"""Density-ratio training: a one-step generator without the scores of a teacher (DiffRatio, arXiv:2502.08005).

One network learns the log ratio of the densities of data and generator at all noise levels, and the generator follows
its gradient down an f-divergence. The paper's settings are not public: each default below is a choice, with the nearest
published method as its source.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from onestep.config.constraints import Constraint, NotNegative, Positive, ShareBelowOne, SmallCount
from onestep.objectives import Batch, Control, Fresh, Loss, Networks, Origin, Phase, Pretrained
from onestep.objectives._divergences import DIVERGENCES, DivergenceName, Normalisation, surrogate
from onestep.objectives._noise_laws import PROGRESS_EVERY, PROGRESSING, NoiseLaw, noise_levels, progressed

__all__ = ["DensityRatio"]

LogRatio: TypeAlias = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""`(noisy images [B, C, H, W], sigma [B], condition)` to log ratios [B]; rows do not depend on each other."""

_GENERATOR, _RATIO = "generator", "ratio"
_AVERAGES, _BY_LEVEL = "ratio_averages", "ratio_by_level"  # the control of the normalisation, and what drives it
_PROGRESS, _SIGNS = "noise_progress", "signs_data"  # of Diffusion-GAN's schedule
_R1_EVERY = 16  # of D2O
_R1_STEP = 0.1  # standard deviation of the noise of an approximate penalty: NVlabs/FastGen


@dataclass(frozen=True, kw_only=True)
class DensityRatio:
    """Minimize E_s[w(s) D_f(p_s || q_s)] of the data p and the generator q, both with noise of standard deviation s.

    The ratio network l(x, s) is trained as a classifier with equal priors, so that l = log p_s / q_s without an offset;
    the generator G(sigma z; sigma) with the loss w(s) phi(l(G + s n, s)), whose gradient is -w(s) h(e^l) grad l:
    `_divergences.py` has the table of f, h and phi. With `jensen_shannon` this is a minimax GAN on diffused images,
    with `softened_reverse_kl` the GAN loss of Diffusion-GAN (arXiv:2206.02262).

    Attributes:
        divergence: Of the data from the generator.
        sigma: The only noise level at which the generator is trained and sampled; SiD's (arXiv:2404.04057).
        noise: Law of the noise levels s. `sid`: s(u) of EDM's grid with u uniform in [0, 0.8], 0.002 to 24.4
            (arXiv:2404.04057). `dmd2`: a level of 1,000 of this grid, uniform in 2 to 98 % (arXiv:2405.14867).
            `diffusion_gan`: its schedule, whose length follows the signs of l on data (arXiv:2206.02262), with steps
            by priority; `diffusion_gan_uniform` with equal chances of all steps, `diffusion_gan_cosine` with cosine
            variances. `dikl`: the variance preserving schedule of 30 steps of DiKL's toys.
        weighting: w(s). `sigma_squared` makes the force that of Diff-Instruct (arXiv:2305.18455) with weight 1 on
            differences of denoisers, as grad l = (D_p - D_q) / s^2; `uniform` is 1.
        clip: Largest absolute log ratio in phi and h; the gradient of l itself is not cut (NVlabs/FastGen: 10).
        normalise: Weight of the old average in f-distill's normalisation of ratios by noise level (arXiv:2502.15681;
            0.5 for its ImageNet-64 in NVlabs/FastGen). None: h is as in the table. Differs from the reference: averages
            are those before the step, over all processes, and h is divided by an average of its mean, too.
        draws: Noise of data and generated images for the ratio network: `independent` levels and noise
            (arXiv:2405.14867), the `same_level`, or `same_level_and_noise` (arXiv:2410.14919).
        ratio_steps: Steps of the ratio network for one of the generator, each on new images (1: arXiv:2404.04057; 5:
            arXiv:2405.14867).
        r1_gamma: Weight of a penalty on the ratio network at noisy data; 0 is none.
        r1: `exact` is gamma / 2 times |gradient of l by the image|^2, as of D2O, every `r1_every` steps. `approximate`
            is gamma times (l(x) - l(x + 0.1 n))^2, n a normal image, in each step (NVlabs/FastGen, with weights 100 to
            1,000); to first order gamma / 50 of the exact one.
        r1_every: Steps between two exact penalties; also their gain. By default 16.
    """

    divergence: DivergenceName
    sigma: Positive = 2.5
    noise: NoiseLaw = "sid"
    weighting: Literal["sigma_squared", "uniform"] = "sigma_squared"
    clip: Annotated[float, Constraint(gt=0, le=50)] = 10.0
    normalise: ShareBelowOne | None = None
    draws: Literal["independent", "same_level", "same_level_and_noise"] = "independent"
    ratio_steps: SmallCount = 1
    r1_gamma: NotNegative = 0.0
    r1: Literal["exact", "approximate"] = "approximate"
    r1_every: SmallCount | None = None

    publishes: ClassVar[str] = _GENERATOR
    also_publishes: ClassVar[tuple[str, ...]] = (_RATIO,)  # for study `verifier`
    samples_in: ClassVar[int | None] = 1
    betas: ClassVar[tuple[float, float]] = (0.0, 0.999)  # arXiv:2404.04057
    # D(sigma z; sigma) of the teacher is the generator at the start (arXiv:2305.18455, arXiv:2404.04057).
    preconditioning: ClassVar[str] = "edm"

    def __post_init__(self) -> None:
        if self.r1_every is not None and (self.r1 != "exact" or not self.r1_gamma):
            found = f"r1: {self.r1}, r1_gamma: {self.r1_gamma}"
            raise ValueError(f"r1_every: got {self.r1_every} with {found}, expected none. Fix: remove it")

    @property
    def samples_at(self) -> float:
        """Noise level at which the generator is sampled."""
        return self.sigma

    def networks(self) -> Mapping[str, Origin]:
        """Return the generator and the ratio network, the block `networks.ratio` of the run."""
        return {_GENERATOR: Pretrained(), _RATIO: Fresh(family="ratios")}

    def phases(self) -> tuple[Phase, ...]:
        """Return the steps: generator, ratio network, and an exact penalty on each `r1_every`-th step except step 0."""
        generator = Phase(
            name=_GENERATOR,
            trains=_GENERATOR,
            loss=self.generator_loss,
            every=self.ratio_steps,
            controls=self._normalising(),
        )
        ratio = Phase(name=_RATIO, trains=_RATIO, loss=self.ratio_loss, controls=self._progressing())
        if not (self.r1 == "exact" and self.r1_gamma):
            return generator, ratio
        every = self.r1_every or _R1_EVERY
        penalty = Phase(
            name="r1",
            trains=_RATIO,
            loss=self.r1_loss,
            every=every,
            gain=float(every),
            second_order=True,
            lazy_regularizer=True,
        )
        return generator, ratio, penalty

    def generate(self, generator: Callable[..., Tensor], batch: Batch) -> Tensor:
        """Return images [B, C, H, W] from new noise, with the condition of the real images: G(sigma z; sigma)."""
        noise = batch.random.normal(*batch.images.shape[1:])
        return generator(self.sigma * noise, noise.new_full((len(noise),), self.sigma), batch.condition)

    def levels(self, batch: Batch) -> Tensor:
        """Draw noise levels [B]."""
        return noise_levels(self.noise, batch.random, progress=batch.controls.get(_PROGRESS, 0.0))

    def generator_loss(self, networks: Networks, batch: Batch) -> Loss:
        """Return the mean over images of w(s) phi(l(G + s n, s)), with the gradient -w(s) h(e^l) grad l."""
        ratio: LogRatio = networks[_RATIO]
        generated = self.generate(networks[_GENERATOR], batch)
        sigma = self.levels(batch)
        log_ratios = ratio(_noisy(generated, sigma, batch), sigma, batch.condition)
        weights, observed = self.weights(log_ratios.detach(), sigma, batch)
        phi = surrogate(DIVERGENCES[self.divergence], log_ratios, clip=self.clip, weights=weights)
        factor = sigma.square() if self.weighting == "sigma_squared" else torch.ones_like(sigma)
        return Loss(value=(factor * phi).mean(), observed=observed)

    def weights(self, log_ratios: Tensor, sigma: Tensor, batch: Batch) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Return the normalised h of log ratios [B], None without a normalisation, and what drives its averages."""
        if self.normalise is None:
            return None, {}
        normal = self._normalisation
        *averages, mean = batch.controls.get(_AVERAGES, self._first_averages)
        ratios = normal.clipped(log_ratios.clamp(-self.clip, self.clip).exp())
        h = DIVERGENCES[self.divergence].h(normal.quotients(ratios, sigma, averages=ratios.new_tensor(averages)))
        observed = torch.cat([normal.observed(ratios, sigma).flatten(), h.mean()[None]])
        return normal.weights(h, mean=mean), {_BY_LEVEL: observed}

    def ratio_loss(self, networks: Networks, batch: Batch) -> Loss:
        """Return the mean over images of softplus(-l) of noisy data plus softplus(l) of noisy generated images.

        With an approximate penalty it is added. All images pass the network in one batch.
        """
        ratio: LogRatio = networks[_RATIO]
        with torch.no_grad():
            generated = self.generate(networks[_GENERATOR], batch)
            sigma = [self.levels(batch)]
            noise = [batch.random.normal(*generated.shape[1:])]
            sigma.append(self.levels(batch) if self.draws == "independent" else sigma[0])
            same = self.draws == "same_level_and_noise"
            noise.append(noise[0] if same else batch.random.normal(*generated.shape[1:]))
            pairs = zip((batch.images, generated), sigma, noise, strict=True)
            noisy = [images + _column(level) * each for images, level, each in pairs]
            if self._approximates:
                noisy.append(noisy[0] + _R1_STEP * batch.random.normal(*generated.shape[1:]))
                sigma.append(sigma[0])
        condition = None if batch.condition is None else torch.cat([batch.condition] * len(noisy))
        data, fake, *moved = ratio(torch.cat(noisy), torch.cat(sigma), condition).split(len(generated))
        value = (F.softplus(-data) + F.softplus(fake)).mean()
        observed = {"log_ratio_data": data.detach().mean(), "log_ratio_generated": fake.detach().mean()}
        if self.noise in PROGRESSING:
            observed[_SIGNS] = data.detach().sign().mean()
        for each in moved:
            penalty = (data - each).square().mean()
            value, observed["r1_penalty"] = value + self.r1_gamma * penalty, penalty.detach()
        return Loss(value=value, observed=observed)

    def r1_loss(self, networks: Networks, batch: Batch) -> Loss:
        """Return gamma / 2 times the mean over noisy data of |d l / d(image)|^2 (arXiv:1801.04406, Eq. 9)."""
        ratio: LogRatio = networks[_RATIO]
        sigma = self.levels(batch)
        noisy = _noisy(batch.images, sigma, batch).detach().requires_grad_()
        with sdpa_kernel(SDPBackend.MATH):  # the other kernels of a GPU have no second derivative
            log_ratios = ratio(noisy, sigma, batch.condition)
        (slope,) = torch.autograd.grad(log_ratios.sum(), noisy, create_graph=True)
        penalty = slope.square().sum(dim=(1, 2, 3)).mean()
        return Loss(value=penalty * self.r1_gamma / 2, observed={"r1_penalty": penalty.detach()})

    @property
    def _approximates(self) -> bool:
        return self.r1 == "approximate" and self.r1_gamma > 0

    @property
    def _normalisation(self) -> Normalisation:
        assert self.normalise is not None
        return Normalisation(rate=self.normalise)

    @property
    def _first_averages(self) -> tuple[float, ...]:
        """The average ratio of each bin, and that of the mean of h."""
        return (1.0,) * (self._normalisation.bins + 1)

    def _normalising(self) -> tuple[Control, ...]:
        if self.normalise is None:
            return ()
        start = self._first_averages
        return (Control(name=_AVERAGES, start=start, observes=_BY_LEVEL, every=1, rule=self._averaged),)

    def _averaged(self, value: tuple[float, ...], *, mean: list[float], images: int) -> tuple[float, ...]:
        """Return the averages after a step, of means over its images."""
        normal, count = self._normalisation, self._normalisation.bins
        by_bin = normal.updated(value[:count], totals=mean[:count], shares=mean[count : 2 * count])
        return (*by_bin, normal.rate * value[count] + (1 - normal.rate) * mean[2 * count])

    def _progressing(self) -> tuple[Control, ...]:
        if self.noise not in PROGRESSING:
            return ()
        return (Control(name=_PROGRESS, start=0.0, observes=_SIGNS, every=PROGRESS_EVERY, rule=progressed),)


def _noisy(images: Tensor, sigma: Tensor, batch: Batch) -> Tensor:
    """Return images [B, C, H, W] with new noise of the levels [B]."""
    return images + _column(sigma) * batch.random.normal(*images.shape[1:])


def _column(values: Tensor) -> Tensor:
    """Return numbers [B] in the shape [B, 1, 1, 1]."""
    return values[:, None, None, None]
