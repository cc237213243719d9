"""Inception score: classes sure for each image and varied over all (Salimans et al., arXiv:1606.03498, section 4)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from onestep.metrics import Direction
from onestep.metrics._arrays import finite_rows

__all__ = ["InceptionScore"]


class InceptionScore:
    """exp of the mean Kullback-Leibler divergence of an image's classes from all images' classes.

    From 1 to K, higher is better. It is taken of consecutive splits and averaged over them; it depends on
    the size of a split, so name it with the number.
    """

    values: ClassVar[Mapping[str, Direction]] = {"inception_score": "higher"}
    compares: ClassVar[tuple[str, ...]] = ("probabilities",)
    takes_statistics: ClassVar[bool] = False

    def __init__(self, *, splits: int | None = None, split_size: int | None = None) -> None:
        """Choose one of two ways to split.

        Args:
            splits: So many splits of equal size: split i ends at image (i + 1) N // splits, as in torch-fidelity.
            split_size: Splits of so many images, the last with what is left, as in guided-diffusion (5,000).

        Raises:
            ValueError: Both are given, or none, or a number below 1.
        """
        given = {name: n for name, n in (("splits", splits), ("split_size", split_size)) if n is not None}
        if len(given) != 1 or min(given.values()) < 1:
            raise ValueError(f"give either splits or split_size, an integer from 1 on; found {given or 'neither'}")
        self.splits = splits
        self.split_size = split_size

    def __call__(self, probabilities: Any) -> dict[str, float]:
        """Score generated images by their class probabilities; all arithmetic is float64.

        Args:
            probabilities: [N, K], a tensor or a numpy array; rows sum to 1, zeros are allowed.

        Returns:
            `inception_score`: the mean over the splits; `inception_score_std`: the standard deviation over them
            (of all splits, not an estimate for more).

        Raises:
            ValueError: There are fewer images than splits, or rows are no probabilities.
        """
        rows = finite_rows(probabilities, called="probabilities", at_least=self.splits or 1).to(torch.float64)
        _check_probabilities(rows)
        scores = torch.stack([_score(split) for split in self._split(rows)])
        return {
            "inception_score": float(scores.mean()),
            "inception_score_std": float(scores.std(correction=0)),
        }

    def _split(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Cut the rows into consecutive splits."""
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
    """Refuse logits and other numbers that are no probabilities."""
    sums = rows.sum(dim=1)
    if rows.min() < 0 or (sums - 1).abs().max() > 1e-3:
        raise ValueError(
            f"probabilities must not be negative and sum to 1 in each row, found a minimum of {float(rows.min()):.4g} "
            f"and sums from {float(sums.min()):.4g} to {float(sums.max()):.4g}; give the softmax of the logits"
        )
