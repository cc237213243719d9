"""By how much protocols of one metric differ, ours and torch-fidelity's, on the same numbers; prints Markdown tables.

Usage: python tests/metrics/measure_protocols.py [--images 2000] [--width 512]. Features and class probabilities are
drawn at random and mean nothing, so the differences are examples of their size, not that of a generator's.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch
from measure_metrics import features
from torch import Tensor
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from onestep.metrics.inception_score import InceptionScore
from onestep.metrics.kernel_distance import KernelDistance
from onestep.metrics.precision_recall import PrecisionRecall

_CLASSES = 100


def class_logits(images: int) -> Tensor:
    """Return logits of ten kinds of images, [images, 100], kind after kind."""
    random = torch.Generator().manual_seed(0)
    kinds = 2 * torch.randn(10, _CLASSES, generator=random)
    return kinds.repeat_interleave(images // 10, dim=0) + torch.randn(images, _CLASSES, generator=random)


def score_lines(images: int) -> Iterator[str]:
    """Yield rows on the Inception score of some images, in the order they are in and shuffled."""
    logits = class_logits(images)
    mixed = logits[torch.randperm(images, generator=torch.Generator().manual_seed(1))]
    for order, rows in (("kinds mixed", mixed), ("kind after kind", logits)):
        for name, metric in (
            ("splits of 5,000, in order (OpenAI; ours)", InceptionScore(split_size=5000)),
            ("10 splits, in order (ours)", InceptionScore(splits=10)),
        ):
            score = metric(rows.double().softmax(dim=1))
            yield _score_line(images, order, name, score["inception_score"], score["inception_score_std"])
        for name, shuffle in (
            ("10 splits, in order (torch-fidelity)", False),
            ("10 splits, shuffled (its default)", True),
        ):
            found = isc_features_to_metric(rows, splits=10, shuffle=shuffle)
            yield _score_line(images, order, name, found["inception_score_mean"], found["inception_score_std"])


def _score_line(images: int, order: str, name: str, mean: float, std: float) -> str:
    return f"| {images:,} | {order} | {name} | {mean:.5f} | {std:.5f} |"


def neighbour_lines(images: int, *, width: int) -> Iterator[str]:
    """Yield rows on precision and recall of features around 0, and of the same beside a large common mean."""
    generated, real = (features(images, width=width, seed=seed) for seed in (0, 1))
    generated = 0.98 * generated
    for shift in (0.0, 100.0):
        sets = {"generated": generated + shift, "real": real + shift}
        for name, metric in (
            ("float64 (ours)", PrecisionRecall()),
            ("float16, as guided-diffusion (ours)", PrecisionRecall(arithmetic="float16")),
        ):
            yield _share_line(shift, name, **metric(**sets))
        found = prc_features_to_metric(sets["generated"], sets["real"], verbose=False)
        yield _share_line(shift, "float32 cdist (torch-fidelity)", precision=found["precision"], recall=found["recall"])


def _share_line(shift: float, name: str, *, precision: float, recall: float) -> str:
    return f"| {shift:g} | {name} | {precision:.4f} | {recall:.4f} |"


def kernel_lines(images: int, *, width: int) -> Iterator[str]:
    """Yield rows on the kernel distance over 100 subsets of 1,000."""
    generated, real = (features(images, width=width, seed=seed) for seed in (0, 1))
    generated = 0.98 * generated
    for seed in (0, 1):
        found = KernelDistance(seed=seed)(generated=generated, real=real)
        yield _kernel_line(f"float64, seed {seed} (ours)", found["kernel_distance"], found["kernel_distance_std"])
    found = kid_features_to_metric(generated, real, verbose=False)
    values = (found[f"kernel_inception_distance_{kind}"] for kind in ("mean", "std"))
    yield _kernel_line("float32, its seed 2020 (torch-fidelity)", *values)


def _kernel_line(name: str, mean: float, std: float) -> str:
    return f"| {name} | {mean:.6f} | {std:.6f} |"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--width", type=int, default=512)
    options = parser.parse_args()
    print("| images | order | Inception score by | mean | std |\n| ---: | --- | --- | ---: | ---: |")
    for images in (50_000, 10_000):
        print("\n".join(score_lines(images)), flush=True)
    sets = f"{options.images:,} x {options.images:,} x {options.width}"
    print(f"\n| common mean | distances ({sets}) | precision | recall |\n| ---: | --- | ---: | ---: |")
    print("\n".join(neighbour_lines(options.images, width=options.width)), flush=True)
    print(f"\n| kernel distance ({sets}), 100 subsets of 1,000 | mean | std |\n| --- | ---: | ---: |")
    print("\n".join(kernel_lines(options.images, width=options.width)))


if __name__ == "__main__":
    main()
