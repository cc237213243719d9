"""The verbs `sample` and `observe`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def sample(
    *, weights: Path, sampler: Mapping[str, Any], seeds: range, batch: int = 256, grid: Path | None = None, output: Path
) -> int:
    """Generate one image per seed.

    Args:
        weights: A teacher or a snapshot.
        sampler: The sampler and its options, as in config.yaml (JSON).
        seeds: First and last seed, as `0-1999`.
        batch: Images per batch.
        grid: Also write the first images here (.npz).
        output: The images (.npz), uint8 [N, H, W, C].
    """
    from onestep.sampling._files import write_samples

    write_samples(_drawing(weights, sampler=sampler, seeds=seeds, batch=batch), output=output, grid=grid)
    return 0


def observe(
    *,
    weights: Path,
    sampler: Mapping[str, Any],
    seeds: range,
    batch: int = 256,
    features: Mapping[str, Any],
    feature_weights: Mapping[str, Path],
    processes: int = 1,
    grid: Path | None = None,
    output: Path,
) -> int:
    """Generate one image per seed and extract features at once, without storing images.

    Args:
        weights: A teacher or a snapshot.
        sampler: The sampler and its options, as in config.yaml (JSON).
        seeds: First and last seed, as `0-1999`.
        batch: Images per batch.
        features: Feature extractors by name, each with its options, as in config.yaml (JSON).
        feature_weights: Their weights by name.
        processes: Processes on this machine, one per GPU.
        grid: Also write the first images here (.npz).
        output: Prefix of the features: `{output}.{name}.npz`.
    """
    if processes > 1 and "RANK" not in os.environ:
        from onestep.launch.local import command_line, run_locally

        options = {"weights": weights, "sampler": sampler, "seeds": seeds, "batch": batch, "features": features}
        options |= {"feature_weights": feature_weights, "grid": grid, "output": output}
        return run_locally(command_line("observe", options), processes=processes)
    from onestep import distributed, plugins
    from onestep.evaluation.extraction import FeatureNetwork, places, write_features_of_ranks
    from onestep.sampling._files import drawn

    networks = {
        output.with_name(f"{output.name}.{name}.npz"): FeatureNetwork(
            extractor=plugins.build("features", block, weights=feature_weights[name]),
            weights=feature_weights[name],
            options=block,
        )
        for name, block in features.items()
    }
    with distributed.joined() as ranks:
        mine = [seeds[place] for place in places(len(seeds), rank=ranks.rank, world=ranks.world)]
        drawing = _drawing(weights, sampler=sampler, seeds=mine, batch=batch)
        # The first images are those of rank 0.
        parts = drawn(drawing, called="/".join(output.parts[-3:]), grid=grid if ranks.leads else None)
        batches = (part.pixels.permute(0, 3, 1, 2) for part in parts)
        write_features_of_ranks(networks, batches, images=len(seeds), ranks=ranks)
    return 0


def _drawing(weights: Path, *, sampler: Mapping[str, Any], seeds: Sequence[int], batch: int) -> Any:
    from onestep import plugins
    from onestep.sampling._files import Drawing

    built = plugins.build("sampling", sampler)
    return Drawing(weights=weights, sampler=built, seeds=seeds, batch=batch, options=sampler)
