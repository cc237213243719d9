"""How long metrics take here, ours and others' ways to the same number, paired in one run; prints a Markdown table.

Usage: python tests/metrics/measure_metrics.py [--images 10000] [--width 2048] [--pass-images 5000] [--rounds 1]
[--only trace neighbours pass]. The ways take turns in each round, and the best round of each counts. A way whose
package is not installed is left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from random_networks import blobs, write_clip, write_inception
from torch import Tensor
from torch.utils.data import Dataset

from onestep.evaluation.extraction import pass_through
from onestep.features.clip import ClipFeatures
from onestep.features.inception import InceptionFeatures
from onestep.metrics.frechet import FrechetDistance, frechet_from_statistics, gaussian_fit
from onestep.metrics.inception_score import InceptionScore
from onestep.metrics.kernel_distance import KernelDistance
from onestep.metrics.precision_recall import PrecisionRecall

Way = Callable[[], float]
PARTS = ("trace", "neighbours", "pass")


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


class Images(Dataset):
    """Images as torch-fidelity takes them."""

    def __init__(self, pixels: Tensor) -> None:
        self._pixels = pixels

    def __len__(self) -> int:
        return len(self._pixels)

    def __getitem__(self, index: int) -> Tensor:
        return self._pixels[index]


def pass_ways(images: int, *, folder: Path) -> Mapping[str, Way]:
    """Return ways from images of 32 x 32 to FID (which they return), IS, KID, precision and recall.

    Features of a tenth as many reference images are there already; torch-fidelity keeps its own in its cache.
    """
    weights, clip_weights = write_inception(folder / "inception.pth"), write_clip(folder / "clip.safetensors")
    inception, clip = InceptionFeatures(weights=weights), ClipFeatures(weights=clip_weights)
    pixels, reference = blobs(images, seed=0, contrast=30.0), blobs(images // 10, seed=1)
    real = [arrays["features"] for arrays in pass_through([inception, clip], [reference]).arrays]
    subset = min(1000, images // 10)

    def ours() -> float:
        (found,) = pass_through([inception], [pixels]).arrays
        return _measured(found)

    def ours_with_clip() -> float:
        found, embedded = pass_through([inception, clip], [pixels]).arrays
        FrechetDistance()(generated=embedded["features"], real=real[1])
        return _measured(found)

    def _measured(found: Mapping[str, object]) -> float:
        sets = {"generated": found["features"], "real": real[0]}
        InceptionScore(splits=10)(probabilities=found["probabilities"])
        for metric in (PrecisionRecall(), KernelDistance(subset_images=subset)):
            metric(**sets)
        return FrechetDistance()(**sets)["frechet"]

    def by_torch_fidelity(*, measured: Tensor = pixels) -> float:
        from torch_fidelity import calculate_metrics

        found = calculate_metrics(
            input1=Images(measured),
            input2=Images(reference),
            input2_cache_name="reference",
            cache_root=str(folder),
            feature_extractor="inception-v3-compat",
            feature_extractor_weights_path=str(weights),
            isc=True,
            fid=True,
            kid=True,
            prc=True,
            kid_subset_size=subset,
            cuda=False,
            save_cpu_ram=True,  # no processes that read: the images are in memory
            verbose=False,
        )
        return found["frechet_inception_distance"]

    ways = {"ours": ours, "ours, with CLIP-FID as well": ours_with_clip}
    if importlib.util.find_spec("torch_fidelity") is None:
        return ways
    by_torch_fidelity(measured=pixels[:subset])  # which fills its cache
    return ways | {"torch-fidelity": by_torch_fidelity}


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
    parser.add_argument("--pass-images", type=int, default=5_000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    options = parser.parse_args()
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print("| what | way | seconds | against ours | number differs by |\n| --- | --- | ---: | ---: | ---: |")
    width, images, passed = options.width, options.images, options.pass_images
    with tempfile.TemporaryDirectory() as folder:
        parts = {
            "trace": (f"trace term, {width} x {width}", lambda: trace_ways(width)),
            "neighbours": (
                f"precision and recall, {images:,} x {images:,} x {width}",
                lambda: neighbour_ways(images, width=width),
            ),
            "pass": (f"all metrics of {passed:,} images", lambda: pass_ways(passed, folder=Path(folder))),
        }
        for name in options.only:
            what, ways = parts[name]
            print("\n".join(lines(what, ways(), rounds=options.rounds)), flush=True)


if __name__ == "__main__":
    main()
