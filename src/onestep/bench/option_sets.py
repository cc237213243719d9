"""Option sets of the benchmark: named execution settings of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from onestep.config.run import FAST, Compile, Precision, Run

REFERENCE = "reference"
OURS = "ours"

_CHANGES: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
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
_ALL = tuple(name for name in _CHANGES if name not in (REFERENCE, OURS))
_PRESETS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "fast": dict(zip(("precision", "compile"), map(vars, FAST), strict=True))
}

OPTION_SETS = (*_CHANGES, "all", *_PRESETS)


@dataclass(frozen=True, kw_only=True)
class OptionSet:
    """The options of `precision:` and `compile:` that are on, of a run with all others off.

    Attributes:
        as_released: Whether to compute like the released code where ours reaches the same numbers otherwise: batch
            norms not folded, generated and real images through the frozen features one after the other with
            channels outermost, one optimizer kernel per parameter. (The order of CSM's two steps, the gradients of
            frozen weights and the EMA stay ours.)
    """

    name: str
    precision: Mapping[str, Any] = field(default_factory=dict)
    compile: Mapping[str, Any] = field(default_factory=dict)
    as_released: bool = False

    @property
    def number_type(self) -> str:
        """The fastest number type of its products."""
        if "bfloat16" in self.precision.values():
            return "bfloat16"
        return "tf32" if self.precision.get("tf32") else "float32"

    def applied_to(self, run: Run) -> Run:
        """Return a run with `precision:` and `compile:` replaced by those of this set."""
        changed = replace(run, precision=Precision(**self.precision), compile=Compile(**self.compile))
        block = run.discriminator
        if self.as_released and block is not None and "fold_batch_norm" in block.options:
            options = {**block.options, "fold_batch_norm": False}
            changed = replace(changed, discriminator=replace(block, options=options))
        return changed


def option_set(name: str) -> OptionSet:
    """Return the set of a name, or of several joined by `+`: `tf32+compile`; `all` combines all options, `fast` is
    the preset of a run.

    Raises:
        ValueError: There is no such set.
    """
    parts = _ALL if name == "all" else name.split("+")
    blocks: dict[str, dict[str, Any]] = {"precision": {}, "compile": {}}
    for part in parts:
        if part not in {*_CHANGES, *_PRESETS}:
            raise ValueError(f"option set: got {part!r}, expected one of {', '.join(OPTION_SETS)}, or some joined by +")
        for block, changes in {**_CHANGES, **_PRESETS}[part].items():
            blocks[block] |= changes
    return OptionSet(name=name, as_released=REFERENCE in parts, **blocks)
