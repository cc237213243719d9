"""One run from its run.yaml to published snapshots: started, resumed, or already finished."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import socket
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from onestep import distributed
from onestep.autoencoders import is_latent
from onestep.checkpoints.training_state import discard_training_states
from onestep.config.run import ResolvedRun, load_run
from onestep.data._batches import OneHot, decoded, opened
from onestep.data._subset import subset_of
from onestep.distributed import Ranks
from onestep.files import Lock, sealed, write_json, write_text
from onestep.run_record import newest_state
from onestep.training.assembly import Training, build_networks, compose
from onestep.training.assignment import Assignment, Inputs
from onestep.training.execution import device_name
from onestep.training.frozen import storage_note
from onestep.training.latents import shape_in
from onestep.training.loop import train
from onestep.training.publication import (
    DONE,
    FAILED,
    begin,
    check_length,
    claim,
    images_done,
    publish,
    publish_snapshots,
    spec_of,
    take_over,
    withdrawn,
)
from onestep.training.sources import FileSources, ImageShape, check_fit, codec_of
from onestep.training.step import micro_batches
from onestep.training.stopping import never
from onestep.training.watch import MakeWatch

_logger = logging.getLogger(__name__)

# Results of waiting for the lock of a run's folder; over ranks the highest counts.
_HELD, _STOPPED, _REFUSED = range(3)
_OWNER = "lock.owner"
# What became of done.json; over ranks the highest counts.
_NONE, _WHOLE, _WITHDRAWN = range(3)


def carry_out(
    assignment: Assignment,
    *,
    folder: Path,
    code: str,
    output: Path | None,
    stop: Callable[[], bool] = never,
    lock_seconds: float = 0.0,
    when_stopped: Callable[[], object] | None = None,
    watch: MakeWatch | None = None,
) -> bool:
    """Train a run to its end or until a request to stop, and return whether it is finished; else its state is saved.

    Args:
        assignment: The run, its files and its work folder's root.
        folder: The work folder: `assignment.folder` for this code.
        code: Fingerprint of the current training code.
        output: Folder in which the run is published; None leaves that to a launcher, except for snapshots, which are
            published below `assignment.output`.
        stop: Whether this process received a request to stop; one process is enough for all to save and leave.
        lock_seconds: How long to wait for another process that trains this run and may be about to stop.
        when_stopped: Called in rank 0 before any process leaves a stopped training, or in each that leaves alone.
        watch: Makes what watches the training in rank 0; None for nothing.

    Raises:
        ValueError: An input is not usable, or another process trains this run.
    """
    try:
        with (
            distributed.joined(stop=stop) as ranks,
            exclusive(folder, ranks=ranks, seconds=lock_seconds, stop=stop) as held,
            _reason_kept(folder, leads=held and ranks.leads),
        ):
            target = None if output is None else output / folder.parent.name
            if held and ranks.leads:
                _prepare(assignment, folder=folder, target=target)
            distributed.wait(ranks=ranks)
            was_whole = held and _is_finished(assignment, folder=folder, ranks=ranks, published=target)
            finished = was_whole or (
                held
                and _finish(assignment, folder=folder, ranks=ranks, code=code, stop=stop, published=target, watch=watch)
            )
            if finished and target is not None and ranks.leads:
                publish(folder, target, whole=was_whole)
            if not finished and when_stopped is not None:
                if ranks.leads:
                    when_stopped()
                distributed.wait(ranks=ranks)
    except distributed.Left:
        _logger.info("%s: stopped before the first step. Start it again", folder)
        if when_stopped is not None:
            folder.mkdir(parents=True, exist_ok=True)
            when_stopped()
        return False
    return finished


@contextlib.contextmanager
def exclusive(folder: Path, *, ranks: Ranks, seconds: float, stop: Callable[[], bool]) -> Iterator[bool]:
    """Hold the folder's lock while training; yield False if a request to stop came while waiting for it.

    Rank 0 holds it and reports the result to the others; the lock of a killed process is released.

    Raises:
        ValueError: Another process holds it after `seconds`, or the file system has no locks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock, taken = Lock(folder / "lock"), _HELD
    try:
        if ranks.leads and not lock.acquire():
            if seconds > 0 and not stop():
                message = "%s: waiting for up to %.0f s, because %s is training this run"
                _logger.info(message, folder, seconds, _owner(folder))
            if not lock.acquire(seconds=seconds, stop=stop):
                taken = _STOPPED if stop() else _REFUSED
        if lock.is_held:
            write_text(folder / _OWNER, f"process {os.getpid()} on {socket.gethostname()}")
        found = distributed.highest(taken, ranks=ranks)
        if found == _REFUSED:
            raise ValueError(f"{folder}: {_owner(folder)} is training this run. Fix: wait for it, or end it first")
        yield found == _HELD
    finally:
        lock.release()


def _owner(folder: Path) -> str:
    try:
        return (folder / _OWNER).read_text(encoding="utf-8") or "another process"
    except OSError:
        return "another process"


def _prepare(assignment: Assignment, *, folder: Path, target: Path | None) -> None:
    """Record the run in its two folders, and publish what earlier starts left."""
    document = assignment.document()
    if target is not None:
        claim(folder, target, config=document)
        if take_over(folder, target, images=document.get("images", 0)):
            _logger.info("%s: finished as published in %s; nothing to train", folder.parent.name, target)
    begin(folder, config=document)
    if target is not None:
        publish_snapshots(folder, target)


def _is_finished(assignment: Assignment, *, folder: Path, ranks: Ranks, published: Path | None) -> bool:
    """Return whether the run is finished, with files as done.json lists them; else it continues or is trained again."""
    # A file written by another machine may not be visible to every rank yet; one that reads it is enough.
    found = _WHOLE if os.path.lexists(folder / DONE) else _NONE
    if found == _WHOLE and ranks.leads:
        document = assignment.document()
        check_length(folder, images=document.get("images", 0))
        before, images = images_done(folder), document.get("images", 0)
        flaw = withdrawn(folder, document=document, published=published)
        if flaw is not None:
            found = _WITHDRAWN
            if before is None or before >= images:
                _logger.warning("%s: got a finished run whose %s; training it again", folder, flaw)
            elif newest_state(folder) is not None:
                _logger.info("%s: continues from %s to %s images", folder.parent.name, f"{before:,}", f"{images:,}")
            else:
                kept = "published snapshots stay until they are replaced by new ones"
                message = "%s: its state at %s images is gone; training from the start; %s"
                _logger.warning(message, folder.parent.name, f"{before:,}", kept)
    return distributed.highest(found, ranks=ranks) == _WHOLE


def _finish(
    assignment: Assignment,
    *,
    folder: Path,
    ranks: Ranks,
    code: str,
    stop: Callable[[], bool],
    published: Path | None,
    watch: MakeWatch | None,
) -> bool:
    """Train and return whether the run is finished."""
    if published is None and assignment.output is not None:
        published = assignment.output / folder.parent.name
    training = assemble(
        load_run(assignment.inputs.run),
        files=assignment.inputs,
        ranks=ranks,
        micro_batch=assignment.micro_batch,
        cache=assignment.state / ".cache" if assignment.cache is None else assignment.cache,
    )
    try:
        history = train(
            training,
            folder=folder,
            ranks=ranks,
            state_seconds=assignment.state_seconds,
            code=code,
            stop=stop,
            published=published,
            keep_state=assignment.keep_state,
            watch=watch,
        )
    except torch.OutOfMemoryError as error:
        raise ValueError(_too_much(training, ranks=ranks)) from error
    if history is not None and ranks.leads:
        facts = _facts(training, ranks=ranks)
        done = {"run": training.name, "spec": spec_of(folder), "code": code, **history, **facts}
        write_json(folder / DONE, sealed(done))
        _keep_last_state(assignment, folder=folder, name=training.name)
    return history is not None


def _too_much(training: Training, *, ranks: Ranks) -> str:
    """Return in one line what to change in a run that needs more memory than its device has."""
    share = ranks.share_of(training.run.batch)
    rows = min(share, training.micro_batch or share)
    saves = [] if training.run.recompute else ["recompute: true"]
    saves += ["shard: true"] if ranks.world > 1 and not training.run.shard else []
    fix = " or ".join([*([f"micro_batch: {rows // 2}"] if rows > 1 else []), *saves]) or "a GPU with more memory"
    return f"runs.{training.name}: got {rows} images at once, expected fewer: no memory left. Fix: {fix}"


def _keep_last_state(assignment: Assignment, *, folder: Path, name: str) -> None:
    """Remove the states that a longer run does not need, since disk quotas are small."""
    if not assignment.keep_state:
        discard_training_states(folder)
        return
    discard_training_states(folder, keep=1)
    size = sum(path.stat().st_size for path in folder.glob("state-*/*"))
    message = "%s: %.1f MB of state stay in %s, from which more images continue (storage.states: none removes it)"
    _logger.info(message, name, size / 1e6, folder)


@contextlib.contextmanager
def _reason_kept(folder: Path, *, leads: bool) -> Iterator[None]:
    """Write the reason of an error into the work folder, where `onestep status` finds it; the next start removes it."""
    if leads:
        (folder / FAILED).unlink(missing_ok=True)
    try:
        yield
    except distributed.Left:
        raise
    except Exception as error:
        reason = " ".join(f"{error or type(error).__name__}".split())[:500]
        if leads:
            with contextlib.suppress(OSError):
                write_json(folder / FAILED, {"time": datetime.now(UTC).isoformat(timespec="seconds"), "reason": reason})
        raise


def assemble(
    resolved: ResolvedRun,
    *,
    files: Inputs,
    ranks: Ranks,
    micro_batch: int | None = None,
    cache: Path | None = None,
) -> Training:
    """Build a run from its files.

    Decoded pixels that exceed the memory limit are in the folder `cache`; None keeps all in memory.

    Raises:
        ValueError: A file does not fit the configuration, or `micro_batch` is not positive.
    """
    run = resolved.run
    if micro_batch is not None and micro_batch < 1:
        raise ValueError(f"micro-batch: got {micro_batch}, expected a positive number, or none for the whole batch")
    if None not in (micro_batch, run.micro_batch) and micro_batch != run.micro_batch:
        expected = f"expected {run.micro_batch}, the run's own, which is part of its run hash"
        raise ValueError(f"--micro-batch: got {micro_batch}, {expected}. Fix: remove the option")
    ranks.share_of(run.batch)
    archive = opened(files.data, cache=cache)
    codec = codec_of(run, files.codec)
    resolution, channels = shape_in(archive, codec=codec, path=files.data)
    classes = archive.classes if resolved.classes is None else resolved.classes
    shape = ImageShape(resolution=resolution, channels=channels, classes=classes)
    shown = codec.channels if is_latent(codec) else None
    check_fit(run, files=files, shape=shape, seen=archive.classes, shown=shown)
    sources = FileSources(files=files, timm=resolved.timm, extractors=resolved.extractors)
    built = build_networks(run, sources=sources, shape=shape, rank=ranks.rank)
    pixels = decoded(archive, cache=cache)
    chosen: slice | np.ndarray = slice(None)
    if run.subset is not None:
        chosen = subset_of(archive.labels(), images=run.subset.images, seed=run.subset.seed)
        pixels = pixels[torch.from_numpy(chosen)]
    return compose(
        resolved,
        built=built,
        codec=codec,
        pixels=pixels,
        conditions=OneHot(archive.labels()[chosen], classes=classes) if run.conditional else None,
        ranks=ranks,
        micro_batch=micro_batch,
    )


def _facts(training: Training, *, ranks: Ranks) -> dict[str, Any]:
    """Return the facts of a finished run for tables."""
    # Phases switch requires_grad on and off; the EMA follows exactly the trained parameters.
    sizes = {role: sum(each.numel() for each in network.parameters()) for role, network in training.networks.items()}
    total = sizes[training.published]
    trainable = sum(average.numel() for average in training.averages[""].state().values())
    return {
        "images_seen": training.run.images,
        "parameters": total,
        "trainable": trainable,
        "frozen": total - trainable,
        "frozen_share": (total - trainable) / total,
        "networks": sizes,  # parameters by role
        "world_size": ranks.world,
        "passes": len(micro_batches(ranks.share_of(training.run.batch), limit=training.micro_batch)),
        "device": device_name(ranks.device),
        **storage_note(training.run),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
