"""How much memory precision and recall take beside the features they are given; prints it in MiB.

Usage: python tests/metrics/peak_memory.py IMAGES WIDTH MEMORY_MIB. A process of its own, because what the operating
system counts is the most that a process has ever held.
"""

from __future__ import annotations

import resource
import sys

import torch

from onestep.metrics.precision_recall import PrecisionRecall


def held() -> float:
    """Return the most that this process has held so far, MiB (Linux counts in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Measure and print: the peak above what was there before, and the number."""
    images, width, memory_mib = map(int, sys.argv[1:])
    random = torch.Generator().manual_seed(0)
    generated, real = (torch.randn(images, width, generator=random) for _ in range(2))
    metric = PrecisionRecall(memory_mib=memory_mib)
    metric(generated=generated[:64] + 0, real=real[:64] + 0)  # what torch sets up once
    before = held()
    found = metric(generated=generated, real=real)
    print(held() - before, found["precision"])


if __name__ == "__main__":
    main()
