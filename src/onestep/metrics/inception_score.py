"""Inception score: confident classes per image, diverse classes over all (Salimans et al., arXiv:1606.03498, 4)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from onestep.metrics import Direction
from onestep.metrics._arrays import finite_rows

__all__ = ["InceptionScore"]


@dataclass(frozen=True, kw_only=True)
class InceptionScore:
    """exp of the mean Kullback-Leibler divergence between p(y|x) and p(y), in [1, K], higher is better.

    It is computed on consecutive splits and averaged. The score depends on the size of a split: report both.

    Attributes:
        splits: Number of splits of equal size: split i ends at image (i + 1) N // splits, as in torch-fidelity.
        split_size: Images per split; the last split has the rest, as in guided-diffusion (5,000). Exactly one of the
            two options is given.
    """

    values: ClassVar[Mapping[str, Direction]] = {"inception_score": "higher"}
    inputs: ClassVar[tuple[str, ...]] = ("probabilities",)
    takes_statistics: ClassVar[bool] = False

    splits: int | None = None
    split_size: int | None = None

    def __post_init__(self) -> None:
        given = {name: n for name in ("splits", "split_size") if (n := getattr(self, name)) is not None}
        if len(given) != 1 or min(given.values()) < 1:
            raise ValueError(f"splits or split_size: got {given or 'neither'}, expected one of them, at least 1")

    @property
    def least_images(self) -> int:
        """One image per split."""
        return self.splits or 1

    def __call__(self, probabilities: Any) -> dict[str, float]:
        """Score generated images by their class probabilities [N, K], whose rows sum to 1, in float64.

        Returns:
            `inception_score`: the mean over the splits; `inception_score_std`: the standard deviation over them,
            normalized by their number.

        Raises:
            ValueError: There are fewer images than splits, or a row is not a distribution.
        """
        rows = finite_rows(probabilities, called="probabilities", at_least=self.least_images).to(torch.float64)
        _check_probabilities(rows)
        scores = torch.stack([_score(split) for split in self._split(rows)])
        return {"inception_score": float(scores.mean()), "inception_score_std": float(scores.std(correction=0))}

    def _split(self, rows: Tensor) -> tuple[Tensor, ...]:
        if self.split_size is not None:
            return rows.split(self.split_size)
        assert self.splits is not None
        return rows.tensor_split([i * len(rows) // self.splits for i in range(1, self.splits)])


def _score(probabilities: Tensor) -> Tensor:
    """Return exp(E[KL(p(y|x) || p(y))]) of one split; 0 log 0 is 0."""
    marginal = probabilities.mean(dim=0, keepdim=True)
    divergence = torch.xlogy(probabilities, probabilities) - torch.xlogy(probabilities, marginal)
    return divergence.sum(dim=1).mean().exp()


def _check_probabilities(rows: Tensor) -> None:
    sums = rows.sum(dim=1)
    if rows.min() < 0 or (sums - 1).abs().max() > 1e-3:
        raise ValueError(
            f"probabilities: got a minimum of {float(rows.min()):.4g} and row sums from {float(sums.min()):.4g} to "
            f"{float(sums.max()):.4g}, expected rows of non-negative values that sum to 1. Fix: use a softmax"
        )
