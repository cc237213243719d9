"""Sampling jobs: the images of a model for a block of seeds, as a file or as a stream."""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from onestep.archive import write_arrays
from onestep.arithmetic import default_device, entry, record_of
from onestep.autoencoders import Codec, is_latent
from onestep.files import sha256_of_file
from onestep.networks import Preconditioned, load_denoiser
from onestep.progress import patient
from onestep.published import weights_file
from onestep.sampling import Sampler, Samples, dropped, generate, sampled_in
from onestep.sampling._decoding import codec_of
from onestep.sampling._parts import Parts, discard

_logger = logging.getLogger(__name__)

_GRID = 128  # images in a grid, the most that a sheet of the results page shows


@dataclass(frozen=True, kw_only=True)
class SamplingJob:
    """Images to generate with a snapshot or a teacher, one per seed.

    `subject` is the identity of the images, recorded in every file made from them: `model`, `sampler` and `seeds` as in
    config.yaml. It is empty for images that are not measured by `onestep measure`.
    """

    weights: Path
    sampler: Sampler
    options: Mapping[str, Any]  # the config block of the sampler
    seeds: Sequence[int]
    batch: int  # images per yielded item; does not change them
    subject: Mapping[str, str]
    codec: Path | None = None  # the network that decodes its latents; by default the one in the results
    parts: Path | None = None  # folder of the images so far of a long sampling; None keeps nothing of a killed one

    @functools.cached_property
    def network(self) -> Preconditioned:
        """The network on the device that samples."""
        return load_denoiser(self.weights).to(default_device())

    @functools.cached_property
    def guide(self) -> Path | None:
        """The weights of the sampler's second network, if it has one. ValueError: They are not there."""
        named = getattr(self.sampler, "guide", None)
        return None if named is None else weights_file(named)

    @functools.cached_property
    def decoder(self) -> Codec:
        """The codec of the images. ValueError: See `onestep.sampling._decoding.codec_of`."""
        return codec_of(self.weights, file=self.codec)

    @functools.cached_property
    def complete_sampler(self) -> Sampler:
        """The sampler with its second network, on the device that samples."""
        return with_guide(self.sampler, guide=self.guide)

    @functools.cached_property
    def weights_sha256(self) -> str:
        """The digest of the file of the weights, for what is made from them."""
        return sha256_of_file(self.weights)

    def arithmetic(self) -> dict[str, str]:
        """Return the record of the arithmetic of the images."""
        device = next(self.network.parameters()).device
        return record_of(sampled_in(self.network, self.sampler), device=device)


def with_guide(sampler: Sampler, *, guide: Path | None) -> Sampler:
    """Return a sampler with its second network, from a file, on the device that samples; itself without one."""
    if guide is None:
        return sampler
    guided: Sampler = sampler.with_guide(load_denoiser(guide).to(default_device()))  # type: ignore[attr-defined]
    return guided


def write_samples(job: SamplingJob, *, output: Path, grid: Path | None) -> None:
    """Write `pixels` uint8 [N, H, W, C], `labels` int64 [N] (-1 without classes), `seeds` int64 [N], and the grid."""
    for _ in iter_samples(job, grid=grid, output=output):
        pass
    discard(job.parts)


def iter_samples(job: SamplingJob, *, grid: Path | None, output: Path | None = None) -> Iterator[Samples]:
    """Yield the images batch by batch in the order of their seeds.

    After the last write all of them to `output`, as `write_samples` does, and the first ones to `grid`. With
    `job.parts`, images of an earlier start come first; the caller discards the folder once it has written all.
    """
    if found := dropped(job.network, job.sampler):
        _logger.warning("%s: %s", job.subject.get("sampler", job.options.get("name")), found)
    parts = Parts(job.parts, seeds=job.seeds, identity=_identity(job) if job.parts else {})
    first: list[Samples] = []
    kept: list[Samples] = []
    label = "/".join(job.subject.values()) or job.weights.stem
    with patient(name=label, total=len(job.seeds)) as progress:
        for made in itertools.chain(parts.read(), _generated(job, parts)):
            if sum(len(part.pixels) for part in first) < _GRID:
                first.append(made)
            if output is not None:
                kept.append(made)
            progress.update(len(made.pixels))
            yield made
    if output is not None:
        _write(output, kept, job=job, count=len(job.seeds))
    if grid is not None:
        _write(grid, first, job=job, count=min(_GRID, len(job.seeds)))


def _generated(job: SamplingJob, parts: Parts) -> Iterator[Samples]:
    """Yield the images that are not in `parts`, which gets them; an error names the weights."""
    try:
        seeds, codec = job.seeds[parts.images :], job.decoder
        for made in generate(job.network, job.complete_sampler, seeds=seeds, batch=job.batch, codec=codec):
            parts.add(made)
            yield made
    except ValueError as error:
        raise ValueError(f"{job.weights}: {error}") from error


def _identity(job: SamplingJob) -> dict[str, Any]:
    """Return what determines the bytes of images beside their seeds and the code."""
    where = job.arithmetic() or {"precision": "float32", "device": f"CPU, {torch.get_num_threads()} threads"}
    facts = {"weights_sha256": job.weights_sha256, "sampler": dict(job.options), "torch": torch.__version__}
    return {**facts, **_guide_of(job), **_codec_of(job), **where}


def _guide_of(job: SamplingJob) -> dict[str, str]:
    """Return the digest of the weights of a sampler's second network; empty without one."""
    return {} if job.guide is None else {"guide_sha256": sha256_of_file(job.guide)}


def _codec_of(job: SamplingJob) -> dict[str, str]:
    """Return the digest of the network that decodes the images; empty where they are no latents."""
    codec = job.decoder
    return {"codec_sha256": codec.origin["weights_sha256"]} if is_latent(codec) else {}


def _write(path: Path, parts: Sequence[Samples], *, job: SamplingJob, count: int) -> None:
    labels = [np.full(len(part.pixels), -1) if part.labels is None else part.labels.numpy() for part in parts]
    arrays = {
        "pixels": np.concatenate([part.pixels.numpy() for part in parts])[:count],
        "labels": np.concatenate(labels).astype(np.int64)[:count],
        "seeds": np.asarray(job.seeds[:count], dtype=np.int64),
    }
    about = {
        "subject": dict(job.subject),
        "weights_sha256": job.weights_sha256,
        "sampler": dict(job.options),
        "evaluations": job.sampler.nfe,
        **_guide_of(job),
        **_codec_of(job),
        **entry(job.arithmetic()),
    }
    write_arrays(path, arrays, about=about)
