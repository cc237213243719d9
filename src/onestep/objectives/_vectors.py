"""What objectives on features of generated images share: their networks, and the vectors of images by network.

Legend: B images, C H W an image, D feature width.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from onestep.coupling import Vectors
from onestep.objectives import Batch, FeatureNetwork, Networks, Origin, Pretrained

GENERATOR = "generator"


def networks_of(features: Iterable[str]) -> dict[str, Origin]:
    """Return the generator, and the frozen networks of the entries of `backbones`, each a function to vectors."""
    return {GENERATOR: Pretrained(), **{_role(name): FeatureNetwork(name=name, pooled=True) for name in features}}


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


def expect_finite(found: Vectors, *, of: str) -> None:
    """Raise ValueError for vectors, of images described as `of`, that are not finite."""
    for name, each in found.items():
        if not bool(each.isfinite().all().cpu()):
            raise ValueError(f"backbones.{name}: got features of {of} that are not finite, expected finite ones")
