"""Sampling and feature extraction at once (`onestep observe`): the same bytes as through files, with any ranks."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from onestep.distributed import Ranks, gather
from onestep.evaluation.extraction import BATCH, ExtractedFeatures, FeatureNetwork, extract, write_extracted
from onestep.sampling._job import SamplingJob, iter_samples
from onestep.sampling._parts import discard


def sample_features(
    job: SamplingJob,
    networks: Mapping[Path, FeatureNetwork],
    *,
    grid: Path | None,
    images: Path | None = None,
    ranks: Ranks,
) -> None:
    """Generate images, each rank those at its `places`; rank 0 writes their features and the grid of the first images.

    One rank alone can write the images, too. ValueError: The weights are not those of a denoiser, the images do not fit
    a network, there are too few images for the ranks, or too many ranks for `images`.
    """
    if images is not None and ranks.world > 1:
        raise ValueError(f"--images: got {ranks.world} processes, expected one. Fix: omit --processes")
    shares = [places(len(job.seeds), rank=rank, world=ranks.world) for rank in range(ranks.world)]
    # Each rank keeps its own images so far; another number of ranks has other shares.
    kept_in = job.parts if job.parts is None or ranks.world == 1 else job.parts / f"{ranks.rank}-of-{ranks.world}"
    mine = replace(job, seeds=[job.seeds[place] for place in shares[ranks.rank]], parts=kept_in)
    samples = iter_samples(mine, grid=grid if ranks.leads else None, output=images)  # rank 0 has the first images
    batches = (part.pixels.permute(0, 3, 1, 2) for part in samples)
    extractors = [network.extractor for network in networks.values()]
    if ranks.world == 1:
        extracted = extract(extractors, batches)
    else:
        kept = list(batches)  # for the digest of all images in order
        extracted = _merged(extract(extractors, kept), torch.cat(kept), shares, ranks=ranks)
    if ranks.leads:
        write_extracted(networks, extracted, subject=job.subject, sampled=mine.arithmetic())
        discard(job.parts)


def places(images: int, *, rank: int, world: int) -> list[int]:
    """Return the indices of the images of one rank: whole calls of a feature network, assigned in turn.

    Every call has the same images as with one rank, so it rounds the same. ValueError: There are fewer calls than
    ranks.
    """
    calls = -(-images // BATCH)
    if calls < world:
        raise ValueError(f"processes: got {world}, expected at most {calls} for {images} images in calls of {BATCH}")
    starts = range(rank * BATCH, images, world * BATCH)
    return [place for start in starts for place in range(start, min(start + BATCH, images))]


def _merged(
    mine: ExtractedFeatures, pixels: Tensor, shares: Sequence[Sequence[int]], *, ranks: Ranks
) -> ExtractedFeatures:
    arrays = tuple(
        {name: _merged_rows(torch.from_numpy(array), shares, ranks=ranks).numpy() for name, array in found.items()}
        for found in mine.arrays
    )
    digest = hashlib.sha256(_merged_rows(pixels, shares, ranks=ranks).numpy().data).hexdigest()
    return ExtractedFeatures(arrays=arrays, images=sum(map(len, shares)), pixels_sha256=digest)


def _merged_rows(rows: Tensor, shares: Sequence[Sequence[int]], *, ranks: Ranks) -> Tensor:
    """Return the rows of all ranks, each at its index."""
    padded = rows.new_zeros(max(map(len, shares)), *rows.shape[1:])
    padded[: len(rows)] = rows
    merged = rows.new_empty(sum(map(len, shares)), *rows.shape[1:])
    for share, received in zip(shares, gather(padded, ranks=ranks), strict=True):
        merged[list(share)] = received[: len(share)]
    return merged
