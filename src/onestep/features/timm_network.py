"""Pooled features of any image classifier of timm."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from onestep.checkpoints.published_weights import in_timms_names
from onestep.config.constraints import Constraint, Text
from onestep.features import Features
from onestep.features._networks import Weights, covering_square, load_timm_network, normalised, run_in_parts

__all__ = ["TimmFeatures"]

Size = Annotated[int, Constraint(ge=32, le=1_024)]


class TimmFeatures:
    """The layer below the logits of a network of timm, such as `tf_efficientnet_lite0.in1k`, of its own width.

    Images are resized to `size` x `size` as the network's authors do, by an antialiased bicubic filter, and normalised
    with the mean and deviation that timm has for the network. Less than the size of the network's training is cheaper
    and another number.
    """

    def __init__(
        self,
        *,
        weights: Path,
        network: Text,
        size: Size = 224,
        precision: Literal["float32", "tf32", "bfloat16"] = "float32",
    ) -> None:
        """Load the weights as timm publishes them; of EfficientNet-lite0 also those of its Python package."""
        import timm  # takes a second

        if not timm.is_model(network):
            raise ValueError(
                f"network: got {network!r}, expected a name of timm.list_models() of timm {timm.__version__}"
            )

        def named(tensors: Weights, model: Any) -> Weights:
            return in_timms_names(tensors, names=model.state_dict(), network=network)

        model = load_timm_network(weights, name=network, convert=named)
        self.network, self.size, self.precision = _Pooled(model), size, precision
        about: Any = model.pretrained_cfg
        self._mean, self._std = tuple(about["mean"]), tuple(about["std"])

    def __call__(self, pixels: Tensor) -> Features:
        """Extract features [B, D] of pixels, uint8 [B, 3 or 1, H, W]; see `onestep.features.Extractor`."""
        network = self.network.to(pixels.device)
        return Features(run_in_parts(network, pixels, prepare=self._prepared, precision=self.precision), None)

    def _prepared(self, pixels: Tensor) -> Tensor:
        return normalised(covering_square(pixels, size=self.size), mean=self._mean, std=self._std)


class _Pooled(nn.Module):
    """A network of timm up to the layer below its logits."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        return self.model.forward_head(self.model.forward_features(images), pre_logits=True)
