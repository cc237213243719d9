"""From a teacher to the generator that starts from it: the config, and the weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

_AUGMENT = "model.map_augment.weight"


def one_step_config(teacher: Mapping[str, Any], *, preconditioning: str, dropout: float) -> dict[str, Any]:
    """Return the config of the generator that starts from the network of config `teacher`.

    Its images are never augmented, so it has no input that describes an augmentation.

    Args:
        teacher: What `build_denoiser` takes.
        preconditioning: Of the generator; the paper's is `d2o`.
        dropout: Of the generator; the paper's is 0.
    """
    return {**teacher, "augment_dim": 0, "dropout": dropout, "preconditioning": preconditioning}


def teacher_weights_for(network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return those of the teacher's weights that `network` takes, which are all but the augmentation's.

    Args:
        network: Built from `one_step_config`.
        state: State dict of the teacher.

    Raises:
        ValueError: The teacher lacks a tensor, has another one, or has one of another shape.
    """
    expected = {name: tensor.shape for name, tensor in network.state_dict().items()}
    # Differs from the reference: that one copies whatever has an equal name and skips the rest; here this one tensor
    # is dropped by name, because the generator has no such input, and everything else must match.
    weights = {name: tensor for name, tensor in state.items() if name in expected or name != _AUGMENT}
    given = {name: tensor.shape for name, tensor in weights.items()}
    differing = sorted(name for name in expected.keys() | given.keys() if expected.get(name) != given.get(name))
    if differing:
        lines = [f"  {name}: network {_shape(expected, name)}, teacher {_shape(given, name)}" for name in differing[:5]]
        more = f"\n  and {len(differing) - 5} more" if len(differing) > 5 else ""
        raise ValueError(
            "the teacher's weights do not fit the network; build it from the teacher's own config:\n"
            + "\n".join(lines)
            + more
        )
    return weights


def _shape(shapes: Mapping[str, tuple[int, ...]], name: str) -> str:
    return str(list(shapes[name])) if name in shapes else "has none"
