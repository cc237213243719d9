"""How long metrics take here, ours and others' ways to the same number, paired in one run; prints a Markdown table.

Usage: python tests/metrics/measure_metrics.py [--images 10000] [--width 2048] [--pass-images 5000] [--rounds 1]
[--only trace neighbours pass clip]. The ways take turns in each round, and the best round of each counts. A way whose
package is not installed is left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from random_networks import blobs, write_clip, write_inception
from torch import Tensor
from torch.utils.data import Dataset

from onestep.evaluation.extraction import extract
from onestep.features.clip import ClipFeatures
from onestep.features.inception import InceptionFeatures
from onestep.metrics.frechet import FrechetDistance, frechet_from_statistics, gaussian_fit
from onestep.metrics.inception_score import InceptionScore
from onestep.metrics.kernel_distance import KernelDistance
from onestep.metrics.precision_recall import PrecisionRecall

Way = Callable[[], float]
PARTS = ("trace", "neighbours", "pass", "clip")


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


@dataclass(frozen=True, kw_only=True)
class Pass:
    """Images of 32 x 32 on their way to FID (which its ways return), IS, KID, precision and recall.

    Features of a tenth as many reference images are there already; torch-fidelity keeps its own in its cache.
    """

    pixels: Tensor
    reference: Tensor
    folder: Path

    @classmethod
    def of(cls, images: int, *, folder: Path) -> Pass:
        """Make images, reference images and an Inception network."""
        write_inception(folder / "inception.pth")
        return cls(pixels=blobs(images, seed=0, contrast=30.0), reference=blobs(images // 10, seed=1), folder=folder)

    def beside_torch_fidelity(self) -> Mapping[str, Way]:
        """Return our way and torch-fidelity's."""
        ways = {"ours": self._ours()}
        if importlib.util.find_spec("torch_fidelity") is None:
            return ways
        self._by_torch_fidelity(self.pixels[: len(self.reference)])  # which fills its cache
        return ways | {"torch-fidelity": lambda: self._by_torch_fidelity(self.pixels)}

    def with_clip(self) -> Mapping[str, Way]:
        """Return our way, and the one through CLIP as well, to CLIP-FID."""
        inception, clip = self._inception(), ClipFeatures(weights=write_clip(self.folder / "clip.safetensors"))
        real = [arrays["features"] for arrays in extract([inception, clip], [self.reference]).arrays]

        def ours_with_clip() -> float:
            found, embedded = extract([inception, clip], [self.pixels]).arrays
            FrechetDistance()(generated=embedded["features"], real=real[1])
            return self._measured(found, real=real[0])

        return {"ours": self._ours(), "ours, with CLIP-FID as well": ours_with_clip}

    def _ours(self) -> Way:
        inception = self._inception()
        (real,) = extract([inception], [self.reference]).arrays

        def ours() -> float:
            (found,) = extract([inception], [self.pixels]).arrays
            return self._measured(found, real=real["features"])

        return ours

    def _inception(self) -> InceptionFeatures:
        return InceptionFeatures(weights=self.folder / "inception.pth")

    def _measured(self, found: Mapping[str, Any], *, real: Any) -> float:
        sets = {"generated": found["features"], "real": real}
        InceptionScore(splits=10)(probabilities=found["probabilities"])
        for metric in (PrecisionRecall(), KernelDistance(subset_images=self._subset)):
            metric(**sets)
        return FrechetDistance()(**sets)["frechet"]

    @property
    def _subset(self) -> int:
        """Images of a subset of KID."""
        return min(1000, len(self.reference))

    def _by_torch_fidelity(self, pixels: Tensor) -> float:
        from torch_fidelity import calculate_metrics

        found = calculate_metrics(
            input1=Images(pixels),
            input2=Images(self.reference),
            input2_cache_name="reference",
            cache_root=str(self.folder),
            feature_extractor="inception-v3-compat",
            feature_extractor_weights_path=str(self.folder / "inception.pth"),
            isc=True,
            fid=True,
            kid=True,
            prc=True,
            kid_subset_size=self._subset,
            cuda=False,
            save_cpu_ram=True,  # no processes that read: the images are in memory
            verbose=False,
        )
        return found["frechet_inception_distance"]


def best_seconds(ways: Mapping[str, Way], *, rounds: int) -> dict[str, tuple[float, float]]:
    """Return the seconds of the best round, and the number, of each way."""
    best = {name: (math.inf, math.nan) for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            begun = time.perf_counter()
            number = way()
            took = time.perf_counter() - begun
            print(f"{name}: {took:.3g} s", file=sys.stderr, flush=True)
            best[name] = min(best[name], (took, number))
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
            "pass": (
                f"all metrics of {passed:,} images",
                lambda: Pass.of(passed, folder=Path(folder)).beside_torch_fidelity(),
            ),
            "clip": (f"all metrics of {passed:,} images", lambda: Pass.of(passed, folder=Path(folder)).with_clip()),
        }
        for name in options.only:
            what, ways = parts[name]
            print("\n".join(lines(what, ways(), rounds=options.rounds)), flush=True)


if __name__ == "__main__":
    main()
