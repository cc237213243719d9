"""How long metrics take here, ours and others' ways to the same number, paired in one run; prints a Markdown table.

Usage: python tests/metrics/measure_metrics.py [--images 10000] [--width 2048] [--rounds 1]. The ways take turns in each
round, and the best round of each counts. A way whose package is not installed is left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from onestep.metrics.frechet import frechet_from_statistics, gaussian_fit
from onestep.metrics.precision_recall import PrecisionRecall

Way = Callable[[], float]


def features(images: int, *, width: int, seed: int) -> Tensor:
    """Return features of correlated columns, float32 [images, width], all above 0 as those of Inception are."""
    random = torch.Generator().manual_seed(seed)
    mixing = torch.randn(64, width, generator=random) / 8
    return (torch.randn(images, 64, generator=random) @ mixing + torch.randn(images, width, generator=random) / 4).abs()


def trace_ways(width: int) -> Mapping[str, Way]:
    """Return ways to tr((A B)^(1/2)) of two covariances of full rank."""
    fits = [gaussian_fit(features(2 * width, width=width, seed=seed)) for seed in (0, 1)]
    (_, a), (_, b) = fits
    zero = torch.zeros(width)

    def ours() -> float:
        return float((a.trace() + b.trace() - frechet_from_statistics(zero, a, zero, b)) / 2)

    def by_eigenvalues() -> float:
        return float(torch.linalg.eigvals(a @ b).real.clamp(min=0).sqrt().sum())

    def by_scipy() -> float:
        import scipy.linalg

        return float(scipy.linalg.sqrtm((a @ b).numpy()).real.trace())

    ways = {"ours (Cholesky, eigvalsh)": ours, "eigvals of the product": by_eigenvalues}
    return ways | ({"scipy.linalg.sqrtm": by_scipy} if importlib.util.find_spec("scipy") else {})


def neighbour_ways(images: int, *, width: int) -> Mapping[str, Way]:
    """Return ways to the precision of two sets; each computes the recall, too."""
    generated, real = (features(images, width=width, seed=seed) for seed in (0, 1))

    def ours() -> float:
        return PrecisionRecall()(generated=generated, real=real)["precision"]

    def by_torch_fidelity() -> float:
        from torch_fidelity.metric_prc import prc_features_to_metric

        # Its own default: distances with torch.cdist, in float32, 10,000 rows at a time.
        found = prc_features_to_metric(generated, real, prc_neighborhood=3, prc_batch_size=10_000, verbose=False)
        return float(found["precision"])

    installed = importlib.util.find_spec("torch_fidelity") is not None
    return {"ours": ours} | ({"torch-fidelity": by_torch_fidelity} if installed else {})


def best_seconds(ways: Mapping[str, Way], *, rounds: int) -> dict[str, tuple[float, float]]:
    """Return the seconds of the best round, and the number, of each way."""
    best = {name: (math.inf, math.nan) for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            begun = time.perf_counter()
            number = way()
            best[name] = min(best[name], (time.perf_counter() - begun, number))
    return best


def lines(what: str, ways: Mapping[str, Way], *, rounds: int) -> list[str]:
    """Return rows of the table; the first of the ways is ours."""
    found = best_seconds(ways, rounds=rounds)
    ours, number = next(iter(found.values()))
    return [
        f"| {what} | {name} | {seconds:.3g} | {seconds / ours:.2f} | {abs(value / number - 1):.1e} |"
        for name, (seconds, value) in found.items()
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print("| what | way | seconds | against ours | number differs by |\n| --- | --- | ---: | ---: | ---: |")
    width, images = options.width, options.images
    trace = f"trace term, {width} x {width}"
    print("\n".join(lines(trace, trace_ways(width), rounds=options.rounds)), flush=True)
    both = f"precision and recall, {images:,} x {images:,} x {width}"
    print("\n".join(lines(both, neighbour_ways(images, width=width), rounds=options.rounds)))


if __name__ == "__main__":
    main()
