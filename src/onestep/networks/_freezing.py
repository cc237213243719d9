"""What D2O-F keeps as it is: the weights of a block that pixels pass through, such as its convolutions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

_IN_A_BLOCK = ("block", "up", "down", "in")


def frozen_parameters(names: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """Return the names that are not trained: those inside a U-Net block that contain one of `patterns`.

    The published levels are [] (D2O), [conv, proj] (D2O-F), [conv, proj, qkv] and [conv, proj, qkv, skip].
    The first and the last convolution, the embeddings and the normalisations are in no block or match no pattern.

    Args:
        names: Parameter names of EDM's networks, as in their state dicts.
        patterns: Parts of names.
    """
    # Differs from the reference: that one applies a second, narrower rule in the generator's phase (without `up` and
    # `down`), which only computes gradients that no optimizer takes.
    return [name for name in names if _contains(name, _IN_A_BLOCK) and _contains(name, patterns)]


def _contains(name: str, parts: Sequence[str]) -> bool:
    return any(part in name for part in parts)
