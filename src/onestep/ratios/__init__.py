"""Contract of ratio networks, which estimate the ratio of two densities of noisy images, and their builder.

Legend: B images, C H W an image, K classes. p is the density of the data, q that of generated images, each with noise
of standard deviation sigma.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor, nn

from onestep import components

__all__ = ["Ratio", "build_ratio"]


class Ratio(Protocol):
    """A class of this folder, or `my_module:MyClass`: an `nn.Module` whose parameters are the trained ones.

    Its constructor takes its own options and gets those of `network`, `teacher`, `img_resolution`, `img_channels` and
    `label_dim` that it has; see `build_ratio`. Its optional method `execution_view` is described in
    `onestep.networks.execution_view`.
    """

    def __call__(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return l(x, sigma, condition) = log p(x) / q(x), float32 [B]: high for data, 0 where both are as likely.

        Rows do not depend on each other.

        Args:
            x: Noisy images, float32 [B, C, H, W]: images in [-1, 1] plus noise of standard deviation sigma.
            sigma: Noise levels, float32 [B], above 0.
            condition: One-hot classes [B, K]; None for an unconditional network.
        """
        ...


def build_ratio(config: Mapping[str, Any], *, teacher: Mapping[str, Tensor] | None = None) -> nn.Module:
    """Build a ratio network with fresh weights, or with those of the teacher that it takes.

    Args:
        config: `name`, the options of its class, and `network`: the config of the run's generator, as `build_denoiser`
            takes it.
        teacher: Weights of the run's teacher, by name.

    Raises:
        ValueError: There is no such ratio network, it refuses an option, or `network` or `teacher` do not fit it.
    """
    network = config["network"]
    block = {key: value for key, value in config.items() if key != "network"}
    taken = components.describe("ratios", block["name"]).parameters
    supplied = {"network": network, "teacher": teacher, "label_dim": network.get("label_dim", 0)}
    supplied |= {key: network[key] for key in ("img_resolution", "img_channels")}
    return components.build("ratios", block, **{key: value for key, value in supplied.items() if key in taken})
