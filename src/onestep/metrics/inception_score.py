"""Inception score: confident classes per image, diverse classes over all (Salimans et al., arXiv:1606.03498, 4)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from onestep.config.constraints import Constraint, SmallCount, least
from onestep.metrics import Direction
from onestep.metrics._features import finite_rows

__all__ = ["InceptionScore"]

_SPLITS = 10  # of the paper's code


@dataclass(frozen=True, kw_only=True)
class InceptionScore:
    """exp of the mean Kullback-Leibler divergence between p(y|x) and p(y), in [1, K], higher is better.

    It is computed on consecutive splits and averaged. The score depends on the size of a split: report both. At most
    one of the two options is given; without both there are 10 splits, as in the paper's code.
    """

    values: ClassVar[Mapping[str, Direction]] = {"inception_score": "higher"}
    inputs: ClassVar[tuple[str, ...]] = ("probabilities",)
    takes_statistics: ClassVar[bool] = False

    splits: SmallCount | None = None  # of equal size: split i ends at image (i + 1) N // splits, as in torch-fidelity
    # Images per split; the last has the rest, as in guided-diffusion (5,000).
    split_size: Annotated[int, Constraint(gt=0, le=10_000_000), least(2)] | None = None

    def __post_init__(self) -> None:
        if self.splits is None and self.split_size is None:
            object.__setattr__(self, "splits", _SPLITS)
        given = {name: n for name in ("splits", "split_size") if (n := getattr(self, name)) is not None}
        if len(given) != 1 or min(given.values()) < 1:
            raise ValueError(f"splits or split_size: got {given}, expected one of them, at least 1")

    @property
    def least_images(self) -> int:
        """Two per split: a split of one image has the score 1 of no variety at all."""
        return 2 * (self.splits or 1)

    def __call__(self, probabilities: Any) -> dict[str, float]:
        """Return the mean over the splits and the deviation (normalized by their number), computed in float64.

        `probabilities` are those of the classes, [N, K]. Fewer images than splits, or a row that is not a distribution,
        are a ValueError.
        """
        rows = finite_rows(probabilities, called="probabilities", at_least=self.splits or 1).to(torch.float64)
        _check_probabilities(rows)
        cuts = [i * len(rows) // self.splits for i in range(1, self.splits)] if self.splits else []
        splits = rows.split(self.split_size) if self.split_size is not None else rows.tensor_split(cuts)
        scores = torch.stack([_score(split) for split in splits])
        return {"inception_score": float(scores.mean()), "inception_score_std": float(scores.std(correction=0))}


def _score(probabilities: Tensor) -> Tensor:
    """Return exp(E[KL(p(y|x) || p(y))]) of one split; 0 log 0 is 0."""
    marginal = probabilities.mean(dim=0, keepdim=True)
    divergence = torch.xlogy(probabilities, probabilities) - torch.xlogy(probabilities, marginal)
    return divergence.sum(dim=1).mean().exp()


def _check_probabilities(rows: Tensor) -> None:
    sums = rows.sum(dim=1)
    if rows.min() < 0 or (sums - 1).abs().max() > 1e-3:
        found = f"a minimum of {float(rows.min()):.4g} and row sums from {float(sums.min()):.4g} to"
        expected = "rows of non-negative values that sum to 1. Fix: use a softmax"
        raise ValueError(f"probabilities: got {found} {float(sums.max()):.4g}, expected {expected}")
