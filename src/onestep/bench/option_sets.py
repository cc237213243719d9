"""Option sets: named ways to compute a run, compared with one another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

REFERENCE = "reference"
OURS = "ours"

_CHANGES: Mapping[str, Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        REFERENCE: {},
        OURS: {},
        "tf32": {"precision": {"tf32": True}},
        "bf16_generator": {"precision": {"generator": "bfloat16"}},
        "bf16_discriminator": {"precision": {"discriminator": "bfloat16"}},
        "channels_last": {"compile": {"channels_last": True}},
        "fused_optimizer": {"compile": {"fused_optimizer": True}},
        "compile": {"compile": {"networks": True}},
        "cuda_graphs": {"compile": {"networks": True, "cuda_graphs": True}},
    }
)
_ALL = tuple(name for name in _CHANGES if name not in (REFERENCE, OURS))

OPTION_SETS = (*_CHANGES, "all")


@dataclass(frozen=True, kw_only=True)
class OptionSet:
    """What differs from a run with every option off.

    Attributes:
        name: As it was asked for.
        precision: Options of `precision:` that are on.
        compile: Options of `compile:` that are on.
        as_released: Whether to compute like the released code where ours goes another way to the same numbers: batch
            norms not folded, generated and real images through the frozen features one after the other and with
            channels outermost, one optimizer kernel a parameter. (The order of CSM's two steps, the gradients of frozen
            weights and the average stay ours.)
    """

    name: str
    precision: Mapping[str, Any] = field(default_factory=dict)
    compile: Mapping[str, Any] = field(default_factory=dict)
    as_released: bool = False

    @property
    def number_type(self) -> str:
        """The fastest type of numbers that is multiplied."""
        if "bfloat16" in self.precision.values():
            return "bfloat16"
        return "tf32" if self.precision.get("tf32") else "float32"

    def applied_to(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """Return a run's document, its own `precision:` and `compile:` replaced by this set's."""
        changed = {**document, "precision": dict(self.precision), "compile": dict(self.compile)}
        if self.as_released and "fold_batch_norm" in (document.get("discriminator") or {}):
            changed["discriminator"] = {**document["discriminator"], "fold_batch_norm": False}
        return changed


def option_set(name: str) -> OptionSet:
    """Return the set of a name, or of several joined by `+`: `tf32+compile`; `all` is all options together.

    Raises:
        ValueError: There is no such set.
    """
    parts = _ALL if name == "all" else name.split("+")
    blocks: dict[str, dict[str, Any]] = {"precision": {}, "compile": {}}
    for part in parts:
        if part not in _CHANGES:
            raise ValueError(f"no option set {part!r}; choices: {', '.join(OPTION_SETS)}, or several joined by +")
        for block, changes in _CHANGES[part].items():
            blocks[block] |= changes
    return OptionSet(name=name, as_released=REFERENCE in parts, **blocks)
