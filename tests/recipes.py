"""The paper's five D2O-F runs as config.yaml has them, each as the document that trains it."""

from __future__ import annotations

from typing import Any

from onestep.config import read_experiment, run_document
from tiny import REPOSITORY

RECIPES = ("cifar10_uncond_d2o_f", "cifar10_cond_d2o_f", "afhqv2_d2o_f", "ffhq_d2o_f", "imagenet64_d2o_f")


def recipe(run: str) -> dict[str, Any]:
    """Return what run.yaml would hold for one of the runs."""
    return run_document(read_experiment(REPOSITORY / "config.yaml"), run)
