"""What objectives on features of generated images share: their networks, and the vectors of images by network.

Legend: B images, C H W an image, D feature width.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

from torch import Tensor

from onestep.config.constraints import Constraint, Positive, Weights
from onestep.coupling import Vectors
from onestep.objectives import Batch, FeatureNetwork, Networks, Origin, Pretrained

GENERATOR = "generator"


def _role(name: str) -> str:
    return f"features_{name}"


def vectors(networks: Networks, images: Tensor, features: Iterable[str]) -> dict[str, Tensor]:
    """Return the vectors of images [B, C, H, W] by network, each float32 [B, D]."""
    return {name: networks[_role(name)](images) for name in features}


def generated_vectors(
    networks: Networks, batch: Batch, *, sigma: float, features: Iterable[str], clamp: bool = False
) -> dict[str, Tensor]:
    """Return the vectors of G(sigma z; sigma) from new noise z, with the conditions of the real images.

    With `clamp`, images are limited to [-1, 1] first, outside of which they have no gradient.
    """
    noise = batch.random.normal(*batch.images.shape[1:])
    images = networks[GENERATOR](sigma * noise, noise.new_full((len(noise),), sigma), batch.condition)
    return vectors(networks, images.clamp(-1, 1) if clamp else images, features)


@dataclass(frozen=True, kw_only=True)
class VectorLoss:
    """An objective that trains a generator by vectors of its images, without a discriminator.

    The defaults of its runs, `betas` and `preconditioning`, are literals of each class, as a config reads them.

    Attributes:
        features: Entries of `backbones`, whose vectors are compared, with the weight of each.
        sigma: The only noise level at which the generator is trained and sampled.
        resolution: Pixels to which images are resized before networks of timm; by default the size of their weights.
    """

    features: Weights
    sigma: Positive = 80.0
    resolution: Annotated[int, Constraint(ge=32, le=1_024)] | None = None

    publishes: ClassVar[str] = GENERATOR
    samples_in: ClassVar[int | None] = 1

    def __post_init__(self) -> None:
        if not self.features:
            raise ValueError("features: got none, expected at least one entry of `backbones` with its weight")

    @property
    def samples_at(self) -> float:
        """Noise level of its sampler."""
        return self.sigma

    def networks(self) -> Mapping[str, Origin]:
        """Return the generator, and the frozen networks of the entries of `backbones`, each a function to vectors."""
        return {
            GENERATOR: Pretrained(),
            **{
                _role(name): FeatureNetwork(name=name, pooled=True, resolution=self.resolution)
                for name in self.features
            },
        }

    def real(self, networks: Networks, batch: Batch) -> dict[str, Tensor]:
        """Return the features of the images of the dataset, by network [B, D]."""
        return vectors(networks, batch.images, self.features)


def expect_finite(found: Vectors, *, of: str) -> None:
    """Raise ValueError for vectors, of images described as `of`, that are not finite."""
    for name, each in found.items():
        if not bool(each.isfinite().all().cpu()):
            raise ValueError(f"backbones.{name}: got features of {of} that are not finite, expected finite ones")
