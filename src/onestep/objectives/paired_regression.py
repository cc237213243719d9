"""Regression of a one-step generator on pairs of noise and image: distillation in its plainest form.

The arm `mapping_only` of the study of initialisation: a map from latents to images without any denoising. The pairs are
those of a deterministic sampler, as in Luhman and Luhman, arXiv:2101.02388.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from onestep import components
from onestep.config.constraints import Positive
from onestep.objectives import Batch, Loss, Networks, Origin, Phase, Pretrained, SampledPairs

__all__ = ["PairedRegression"]

_GENERATOR, _PAIRS = "generator", "pairs"


@dataclass(frozen=True, kw_only=True)
class PairedRegression:
    """The mean over pairs (z, x) of a distance between G(sigma z; sigma) and x.

    z is the noise of a seed, and x the image that a sampler has made of it: the run's `pairs`. Each image of a batch is
    a pair drawn uniformly, with replacement; the images of the dataset are not used. The images are those of the
    pipeline's files, with 8 bits a channel.

    Attributes:
        distance: A file of distances/ with its options, such as `{name: l2}`.
        sigma: The noise level at which the generator is evaluated, in training and in sampling.
    """

    distance: Mapping[str, Any]
    sigma: Positive = 2.5  # that of the generator of SiD (arXiv:2404.04057); 80 is that of D2O

    publishes: ClassVar[str] = _GENERATOR
    samples_in: ClassVar[int | None] = 1
    preconditioning: ClassVar[str] = "edm"
    parts: ClassVar[Mapping[str, str]] = {"distance": "distances"}

    def __post_init__(self) -> None:
        self.networks()  # refuses a distance that is none

    @functools.cached_property
    def _distance(self) -> Any:
        return components.build_part("distances", self.distance)

    @property
    def samples_at(self) -> float:
        """Noise level at which the generator is sampled."""
        return self.sigma

    def networks(self) -> Mapping[str, Origin]:
        """Return the generator, the pairs, and the networks of the distance."""
        return {_GENERATOR: Pretrained(), _PAIRS: SampledPairs(), **self._distance.networks()}

    def phases(self) -> tuple[Phase, ...]:
        """Return the generator's step."""
        return (Phase(name=_GENERATOR, trains=_GENERATOR, loss=self.generator_loss),)

    def generator_loss(self, networks: Networks, batch: Batch) -> Loss:
        """Return the mean distance between G(sigma z; sigma) and the image of z, over as many pairs as images."""
        noise, images, condition = networks[_PAIRS](batch.random.uniform())
        generated = networks[_GENERATOR](self.sigma * noise, noise.new_full((len(noise),), self.sigma), condition)
        distances = self._distance(generated, images, networks=networks)
        return Loss(value=distances.mean())
