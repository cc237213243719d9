"""Option sets of the benchmark: named execution settings of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from onestep.bench.released import released_run
from onestep.config.run import FAST, Compile, Precision, Run

REFERENCE = "reference"
OURS = "ours"
RECOMPUTE = "recompute"  # slower, for less memory: not part of `all`

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
    RECOMPUTE: {},
}
_ALL = tuple(name for name in _CHANGES if name not in (REFERENCE, OURS, RECOMPUTE))
_PRESETS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "fast": dict(zip(("precision", "compile"), map(vars, FAST), strict=True))
}

OPTION_SETS = (*_CHANGES, "all", *_PRESETS)


@dataclass(frozen=True, kw_only=True)
class OptionSet:
    """The options of `precision:` and `compile:` that are on, of a run with all others off.

    Attributes:
        recompute: Whether activations are computed again in the backward pass; by default as the run has it.
        as_released: Whether to compute like the released code where ours reaches the same numbers otherwise; see
            `onestep.bench.released`.
    """

    name: str
    precision: Mapping[str, Any] = field(default_factory=dict)
    compile: Mapping[str, Any] = field(default_factory=dict)
    recompute: bool = False
    as_released: bool = False

    @property
    def number_type(self) -> str:
        """The fastest number type of its products."""
        if "bfloat16" in self.precision.values():
            return "bfloat16"
        return "tf32" if self.precision.get("tf32") else "float32"

    def without_devices(self) -> OptionSet:
        """Return the set without what only some devices have and what adds no memory of its own, for an estimate."""
        compiled = {key: value for key, value in self.compile.items() if key == "channels_last"}
        return replace(self, precision={**self.precision, "tf32": False}, compile=compiled)

    def applied_to(self, run: Run) -> Run:
        """Return a run with `precision:` and `compile:` replaced by those of this set."""
        changed = replace(
            run,
            precision=Precision(**self.precision),
            compile=Compile(**self.compile),
            recompute=run.recompute or self.recompute,
        )
        return released_run(changed) if self.as_released else changed


def own_options(run: Run) -> OptionSet:
    """Return a run's own execution settings."""
    return OptionSet(name="own", precision=vars(run.precision), compile=vars(run.compile), recompute=run.recompute)


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
    return OptionSet(name=name, as_released=REFERENCE in parts, recompute=RECOMPUTE in parts, **blocks)
