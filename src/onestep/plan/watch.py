"""Section `watch` of config.yaml for one run, with the files that its numbers need."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from onestep.config.latent_checks import pixels_of
from onestep.plan import Plan, inputs, measure, measured


def order(plan: Plan, run: str) -> dict[str, Any]:
    """Return what `onestep train --watch` takes as JSON; empty without a request in the config."""
    asked, chosen = plan.experiment.watch, plan.experiment.runs[run]
    numbers = [] if chosen.classifier else [_number(plan, run, *each) for each in asked.numbers.items()]
    found: dict[str, Any] = {"numbers": numbers} if numbers else {}
    return found | ({"wandb": asked.wandb} if asked.wandb else {})


def references(plan: Plan) -> list[Path]:
    """Return the features of real images that the numbers of any run are compared with."""
    orders = (
        [order(plan, run) for run in measured.default_runs(plan.experiment)] if plan.experiment.watch.numbers else []
    )
    return list(
        dict.fromkeys(Path(each["real"]) for found in orders for each in found.get("numbers", ()) if "real" in each)
    )


def _number(plan: Plan, run: str, metric: str, images: int) -> dict[str, Any]:
    features = plan.experiment.metrics[metric].features
    assert features is not None, metric
    # The reference does not depend on the rest of the block's name.
    (real,) = measure.metric_files(plan, f"{run}@0", "one_step", "0-0", metric).get("real", [None])
    trained_on = plan.experiment.runs[run].dataset
    source = plan.experiment.datasets[pixels_of(plan.experiment, trained_on) or trained_on].references.get(metric)
    return {
        "metric": metric,
        "images": images,
        "block": plan.block("metrics", metric),
        "features": features,
        "features_block": plan.block("features", features),
        "weights": str(inputs.source_of(plan, plan.experiment.features[features])),
        **({} if real is None else {"real": str(real)}),
        **({} if real is None or source is None else {"real_input": source}),
    }
