"""The contract of an objective: a frozen dataclass of hyperparameters whose methods are the equations.

Legend: B images of this rank, C H W an image, K classes, N logits per image.
`images` are float32 in [-1, 1], [B, C, H, W]; `condition` is opaque: one-hot float32 [B, K] today, or None.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, Protocol, TypeAlias

from torch import Tensor

from onestep.augmentations import RowNumbers
from onestep.controls import Control
from onestep.coupling import Coupled, no_loss_of_a_part

Networks: TypeAlias = Mapping[str, Any]
"""The networks of a run by role: callables of the contract of their family, which the objective chooses."""


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A trainable denoiser: initialized from the run's teacher, or from the run's `network` block at random."""


@dataclass(frozen=True, kw_only=True)
class Fresh:
    """A trainable network of a family folder, built at random from the run's block of the same name as the role."""

    family: str
    maps_of: str | None = None  # of a discriminator: the role before it whose inner maps its heads take


@dataclass(frozen=True, kw_only=True)
class TeacherCopy:
    """The run's teacher with its own architecture, law and weights; trainable if it is not frozen."""

    frozen: bool = True
    dropout: float | None = None  # of a trained copy, without the weights that a generator drops; None: the teacher's


@dataclass(frozen=True, kw_only=True)
class AverageOf:
    """The EMA of another role's weights, updated after each step, never trained itself; half-life in images."""

    role: str
    half_life: float


@dataclass(frozen=True, kw_only=True)
class FeatureNetwork:
    """A frozen entry of the section `backbones`: a network, by default with the taps of a discriminator, or tensors."""

    name: str
    strides: tuple[int, ...] | None = None  # of its taps
    shapes: Mapping[str, tuple[int, ...]] | None = None  # of an entry that is tensors alone, by name
    pooled: bool = False  # whether it maps images [B, C, H, W] to vectors, float32 [B, D]
    resolution: int | None = None  # of the images of a network of timm that makes vectors; None: that of its weights
    frozen: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class SampledPairs:
    """The run's `pairs`, called with numbers in [0, 1) [B]: noise [B, C, H, W], the image made of it, its condition."""

    frozen: ClassVar[bool] = True


Origin: TypeAlias = Pretrained | Fresh | TeacherCopy | AverageOf | FeatureNetwork | SampledPairs
"""Where a network of an objective comes from."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The input of one phase of one step.

    Attributes:
        images: Real images, float32 in [-1, 1], shape [B, C, H, W]; of a run on latents, draws of these.
        condition: Of these images; None for an unconditional run.
        random: Fresh random streams of this phase, one per image.
        images_seen: Images used before this step, over all ranks.
        controls: Current values of the controlled parameters (`Phase.controls`) by name: numbers, or tuples of them.
        pictures: Decodes images of a run on latents, with a gradient; None for a run on pixels.
    """

    images: Tensor
    condition: Tensor | None
    random: RowNumbers
    images_seen: int
    controls: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    pictures: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True, kw_only=True)
class Loss:
    """A scalar to minimize and values to log.

    Attributes:
        value: Differentiable scalar; the mean over the images of this rank, times any scale that the config names.
        observed: Detached scalars by name, for the log; vectors are for controls alone.
    """

    value: Tensor
    observed: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One optimizer step: `loss` trains the network of role `trains`, or a loss of all images at once, `coupled`.

    Attributes:
        trains: The role whose parameters are updated; all others are constant.
        every: The phase runs on each `every`-th step; with `every` > 1 not on step 0.
        controls: Parameters that adapt to what this phase observes.
        second_order: True if the loss needs double backward; the phase then receives uncompiled float32 networks.
        lazy_regularizer: Of one with a gain of `every`: Adam is corrected as in StyleGAN2 (1912.04958, appendix B).
    """

    name: str
    trains: str
    loss: Callable[[Networks, Batch], Loss] = no_loss_of_a_part
    coupled: Coupled | None = None
    every: int = 1
    gain: float = 1.0
    controls: tuple[Control, ...] = ()
    second_order: bool = False
    lazy_regularizer: bool = False


class Objective(Protocol):
    """The class of each file in this folder.

    Attributes:
        publishes: The role whose EMA a snapshot contains.
        samples_in: NFE of its generator: 1, or more of a chain (`onestep.chain`); None if it does not fix the NFE.

    Optional, literals for login nodes: `betas`, `preconditioning` with a teacher (defaults of runs); `also_publishes`,
    roles with a file beside the last snapshot (`RoleWeights` of studies). Optional: `samples_at`, its sampling level;
    `batch_limits`, fewest and most images of a step (None: any); a method `spared`: by phase and role, forward passes
    per image that a step without numbers makes beyond an average one, where values decide which images pass.
    """

    publishes: ClassVar[str]
    samples_in: int | None

    def networks(self) -> Mapping[str, Origin]:
        """Return the networks by role, in the order in which they are built."""
        ...

    def phases(self) -> tuple[Phase, ...]:
        """Return the optimizer steps in the order they run."""
        ...
