"""Contract of networks, and the denoisers that are built of them.

Legend: B images, C H W an image, K width of the condition, A augmentation labels. Images are float32 in about [-1, 1]
(standard deviation about 0.5) plus noise of standard deviation sigma; `condition` is a one-hot class vector [B, K]
today, or None.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from onestep.networks._denoiser import Compiler, Preconditioned, build_denoiser, load_denoiser
from onestep.networks._storage import store_frozen_weights
from onestep.networks._teachers import frozen_parameters, one_step_config, published_architecture, teacher_weights_for

__all__ = [
    "Network",
    "Preconditioned",
    "build_denoiser",
    "execution_view",
    "frozen_parameters",
    "load_denoiser",
    "one_step_config",
    "published_architecture",
    "settle_after_steps",
    "store_frozen_weights",
    "teacher_weights_for",
]


class Network(Protocol):
    """A class of this folder, or `my_module:MyClass`: an `nn.Module` that a law turns into a denoiser.

    Its constructor takes keyword arguments: `img_resolution`, `img_channels`, `label_dim`, and its own options. An
    option `dropout` follows the run's `dropout`. The wrapped network is `model`, which starts every parameter name.

    Attributes:
        freeze_levels: Patterns of parameter names of the denoiser (`model.*.conv[01].*`) for each name that a run may
            list under `freeze:`; see `frozen_parameters`.

    Optional class attributes:
        generator_options: Options that a generator does not take from its teacher, with their values.
        teacher_only: Patterns of the tensors of a teacher that its generator may lack.
        recompute: False, of any submodule: a run with `recompute: true` sets it to True, and the submodule then
            computes its activations again in the backward pass (`torch.utils.checkpoint`).
        block_layers: The blocks of the denoiser that studies observe, by part of the network, such as `encoder`: a
            pattern of the names of their modules, and the name of the last layer within a block.
        casts_weights: True if `forward` takes half-precision images and casts its weights to their type. Otherwise
            half precision means torch's autocast on float32 images.
        after_step: A method without arguments, of any submodule, which a training calls at its start and after each
            optimizer step of the network's role, before averages take the weights over: it may change trained
            parameters in place, such as to unit norm, and must leave those that require no gradient.
        published_tensors: A function from the tensors of a published file to those of a denoiser, by name, which
            `load_state_dict` of the denoiser applies; other tensors must stay as they are.
        encode: A method of `x`, `noise` and `condition` as in `forward` that returns the coarsest map of the first half
            of the network, of which ratio networks are made (`onestep.ratios`). With it come `encoded`, channels and
            size of that map, and `decoder_parts`, the names of the submodules that it does without.
        with_maps: A method of `x`, `noise` and `condition` as in `forward`, and `stop_early`, that returns (result,
            maps): the last map of each level of the first half of the network, the finest first, for discriminators on
            inner maps. With `stop_early` the result is None, and the second half is not run. With it comes
            `map_shapes`, channels and size of each map.
    """

    freeze_levels: ClassVar[Mapping[str, tuple[str, ...]]]

    def forward(self, x: Tensor, noise: Tensor, condition: Tensor | None) -> Tensor:
        """Run the network.

        A network trained on augmented images takes a fourth argument, `augment_labels` [B, A], which it gets only
        if images are augmented.

        Args:
            x: Scaled images c_in x [B, C, H, W]; the result has this shape.
            noise: c_noise [B], or [1] for one level of all images; float32.
            condition: float32 [B, label_dim], or [1, label_dim] of zeros; None if `label_dim` is 0.
        """
        ...


def execution_view(
    module: nn.Module, *, bfloat16: bool, compiled: Compiler, is_constant: bool = True
) -> Callable[..., Any]:
    """Return any network of a run as first-order phases call it: with the precision and compilation of the run.

    The view computes with the weights of `module`. A module may define a method `execution_view` with these keyword
    arguments, as denoisers and discriminators do; otherwise it is compiled as it is. Call this when frozen weights are
    final and trained parameters require a gradient. With `bfloat16`, convolutions and matrix products run in it. With
    `is_constant`, parameters without a gradient are constant; those of an EMA are not.
    """
    own = getattr(module, "execution_view", None)
    if own is None:
        return compiled(module)
    return own(bfloat16=bfloat16, compiled=compiled, is_constant=is_constant)


def settle_after_steps(network: nn.Module, optimizer: Optimizer) -> None:
    """Call the methods `after_step` of a network's parts now, and after each step of the optimizer of the network."""
    calls: list[Any] = [part.after_step for part in network.modules() if hasattr(part, "after_step")]

    def settle(*_: Any) -> None:
        for call in calls:
            call()

    settle()
    if calls:
        optimizer.register_step_post_hook(settle)
