"""The log of a run: means between two records, one JSON line per record, a progress bar."""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from typing import Any, NamedTuple

import torch
from torch import Tensor

from onestep import components, distributed
from onestep.autoencoders import is_latent
from onestep.chain import sampler_for
from onestep.checkpoints.post_hoc import NOTE
from onestep.checkpoints.snapshot import expect_finite, write_snapshot
from onestep.config.run import to_document
from onestep.distributed import Ranks
from onestep.files import write_bytes
from onestep.progress import live
from onestep.training.assembly import Training
from onestep.training.ema import MovingAverage
from onestep.training.frozen import as_published, storage_note
from onestep.training.step import PhaseReport


class Window:
    """Sums of the phases' reports since the last record; they stay on the device until the next one."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, str], Tensor] = {}
        self._counts: dict[tuple[str, str], int] = defaultdict(int)
        self._replaced: Tensor | int = 0
        self._entries = 0

    @property
    def is_empty(self) -> bool:
        """Whether no step was added."""
        return not self._counts

    def add(self, reports: list[PhaseReport]) -> None:
        """Add the reports of one step."""
        for report in reports:
            observed = {("observed", name): value for name, value in report.observed.items() if value.ndim == 0}
            for key, value in {("losses", report.name): report.loss, **observed}.items():
                double = value.detach().double()
                self._sums[key] = double if key not in self._sums else self._sums[key] + double
                self._counts[key] += 1
            self._replaced = self._replaced + report.replaced
            self._entries += report.entries

    def means(self, *, ranks: Ranks) -> dict[str, dict[str, float | None]]:
        """Return means over steps and ranks: {"losses": {phase: ...}, "observed": {name: ...}}; None if not finite."""
        keys = sorted(self._sums)
        values = distributed.average(torch.stack([self._sums[key] / self._counts[key] for key in keys]), ranks=ranks)
        found: dict[str, dict[str, float | None]] = {"losses": {}, "observed": {}}
        for (kind, name), value in zip(keys, values.tolist(), strict=True):
            found[kind][name] = value if value - value == 0 else None
        return found

    def state(self, *, ranks: Ranks) -> dict[str, Any]:
        """Return the exact state; every rank must call this.

        `sums` is a tensor, float64 [ranks, sums]; the JSON value `counts` has kind, name and number of steps of each.
        """
        keys = sorted(self._sums)
        sums = torch.stack([self._sums[key] for key in keys]) if keys else torch.zeros(0, dtype=torch.float64)
        return {
            "sums": torch.stack(distributed.gather(sums, ranks=ranks)),
            "counts": [[*key, self._counts[key]] for key in keys],
            "replaced": self.replaced()[0],
            "entries": self._entries,
        }

    def restore(self, state: Mapping[str, Any], *, ranks: Ranks) -> None:
        """Restore the result of `state`; with another number of ranks, each takes the mean."""
        sums = state["sums"]
        own = (sums[ranks.rank] if len(sums) == ranks.world else sums.mean(0)).to(ranks.device)
        for (kind, name, count), value in zip(state["counts"], own, strict=True):
            self._sums[kind, name], self._counts[kind, name] = value, count
        self._replaced, self._entries = torch.tensor(state["replaced"], device=ranks.device), state["entries"]

    def replaced(self) -> tuple[int, float]:
        """Return the number of gradient entries that were not finite, and their share."""
        count = int(self._replaced)
        return count, count / max(self._entries, 1)


class Settled(NamedTuple):
    """Length of a log in bytes, and their SHA-256; empty in states of earlier versions."""

    size: int
    sha256: str


def flaw_of_log(path: Path, settled: Settled) -> str | None:
    """Return in a few words why the first bytes of a log are not those of a state; None if they are."""
    if not settled.size:
        return None
    if path.is_symlink() or not path.is_file():
        return f"{path.name} is gone" if not os.path.lexists(path) else f"{path.name} is no plain file"
    with path.open("rb") as file:
        content = file.read(settled.size)
    if len(content) < settled.size:
        return f"{path.name} has {len(content):,} bytes of {settled.size:,}"
    if not settled.sha256:
        is_whole = content.endswith(b"\n") and all(map(_is_record, content.splitlines()))
    else:
        is_whole = hashlib.sha256(content).hexdigest() == settled.sha256
    return None if is_whole else f"{path.name} has changed since it was written"


def _is_record(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


class RunLog:
    """The file log.jsonl; a resume truncates records after its state, whose log must be whole (`flaw_of_log`)."""

    def __init__(self, path: Path, *, bytes_kept: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not bytes_kept:
            path.unlink(missing_ok=True)  # a published log of an earlier version may be the same file
        elif path.stat().st_nlink > 1:
            write_bytes(path, path.read_bytes())
        self._digest = hashlib.sha256(path.read_bytes()[:bytes_kept] if bytes_kept else b"")
        self._file = open(path, "ab")  # noqa: SIM115 - open as long as the run
        self._file.truncate(bytes_kept)

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record and flush it to the operating system."""
        line = json.dumps(record, allow_nan=False).encode() + b"\n"
        self._file.write(line)
        self._file.flush()
        self._digest.update(line)

    def settled(self) -> Settled:
        """Flush the log to disk and return what it holds, which is part of a state."""
        os.fsync(self._file.fileno())
        return Settled(self._file.seek(0, os.SEEK_END), self.sha256)

    @property
    def sha256(self) -> str:
        """SHA-256 of the whole log."""
        return self._digest.hexdigest()

    def close(self) -> None:
        """Flush the log to disk and close it."""
        self.settled()
        self._file.close()


class Progress:
    """A progress bar; without a terminal, a line every 10 seconds."""

    def __init__(self, name: str, *, images: int, images_seen: int = 0, shown: bool = True) -> None:
        self._bar = live(total=images, name=name, unit="images", initial=images_seen, shown=shown, unit_scale=True)

    def show(self, images_seen: int, *, losses: Mapping[str, float | None]) -> None:
        """Update the bar if it is time, and always at the end."""
        found = {phase: value for phase, value in losses.items() if value is not None}
        self._bar.set_postfix(found, refresh=False)
        self._bar.update(images_seen - self._bar.n)

    def close(self) -> None:
        """Finish the bar."""
        # tqdm does not draw a bar that ends before its first refresh unless the delay is 0.
        self._bar.delay = 0
        self._bar.close()


def record_of(
    training: Training, *, images_seen: int, window: Window, rate: float, seconds: float, ranks: Ranks
) -> dict[str, Any]:
    """Return one record of the log: `rate` is in images per second, `seconds` those of training so far.

    Raises:
        ValueError: Too many gradient entries were not finite.
    """
    replaced, share = window.replaced()
    if share > training.run.non_finite_limit:
        raise ValueError(
            f"{training.name}: got {100 * share:.2g}% of gradient entries not finite before image {images_seen:,}, "
            f"expected at most non_finite_limit ({100 * training.run.non_finite_limit:.2g}%). "
            "Fix: lower the learning rates, or raise the limit"
        )
    # Of the device if it is CUDA, else resident memory of this process.
    on_cuda = ranks.device.type == "cuda"
    peak = torch.cuda.max_memory_allocated(ranks.device) if on_cuda else getrusage(RUSAGE_SELF).ru_maxrss << 10
    controls = dict(training.controls.numbers())
    return {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "images_seen": images_seen,
        **window.means(ranks=ranks),
        **({"controls": controls} if controls else {}),
        "images_per_second": round(rate, 1),
        "seconds": seconds,
        "processes": ranks.world,
        "memory_mib": peak >> 20,
        "non_finite": replaced,
        **({"non_finite_share": share} if replaced else {}),
    }


def write_snapshots(
    training: Training, *, before: int, now: int, folder: Path, ranks: Ranks | None = None
) -> dict[str, str]:
    """Write each average if this step reached the count of a snapshot; return the SHA-256 of each file by its name.

    Beside the last snapshot are the weights of further roles that the objective publishes. Every one of `ranks` must
    call this; rank 0 writes, and others return nothing.

    Raises:
        ValueError: The weights are not finite; no stage would read the snapshot.
    """
    written, leads = {}, ranks is None or ranks.leads
    for name, average in snapshot_files(training, before=before, now=now).items():
        weights = as_published(distributed.whole(average.published(), kept=leads), training.run)
        if not leads:
            continue
        expect_finite(f"{training.name}: {name}", weights)
        config = training.configs.get(training.published, {})
        profile = {} if average.power is None else {NOTE: {"exponent": average.power, "images": now}}
        written[name] = write_snapshot(folder / name, weights, config, note=_note(training) | profile)
    for name, role in role_files(training, before=before, now=now).items():
        tensors = distributed.whole(training.networks[role].state_dict(), kept=leads)
        weights = as_published(tensors, training.run)
        if not leads:
            continue
        expect_finite(f"{training.name}: {name}", weights)
        written[name] = write_snapshot(folder / name, weights, training.configs[role], note=storage_note(training.run))
    return written


def _note(training: Training) -> dict[str, Any]:
    """Return the note of the snapshots: the sampler of a generator unless its law, D2O's, implies one step from 80."""
    stored = storage_note(training.run)
    sampler = sampler_for(to_document(training.run.objective))
    is_implied = sampler is not None and sampler["name"] == "one_step" and training.run.preconditioning in (None, "d2o")
    return ({} if sampler is None or is_implied else {"sampler": sampler}) | stored | _codec_note(training)


def _codec_note(training: Training) -> dict[str, Any]:
    """Return the codec with which images of a snapshot are decoded, with the digest of its network."""
    if training.run.codec is None:
        return {}
    digest = {"weights_sha256": training.codec.origin["weights_sha256"]} if is_latent(training.codec) else {}
    return {"codec": {**to_document(training.run.codec), **digest}}


def snapshot_files(training: Training, *, before: int, now: int) -> dict[str, MovingAverage]:
    """Return the averages in the snapshots from `before` to `now` images, by the file's name in the work folder."""
    counts = [count for count in training.snapshots if before < count <= now]
    return {
        f"snapshots/{count}{suffix}.safetensors": average
        for count in counts
        for suffix, average in training.averages.items()
    }


def role_files(training: Training, *, before: int, now: int) -> dict[str, str]:
    """Return the roles whose weights are published beside the last snapshot, by the file's name in the work folder."""
    last = training.run.images
    if not before < last <= now:
        return {}
    roles = getattr(components.build("objectives", training.run.objective), "also_publishes", ())
    return {f"snapshots/{last}-{role}.safetensors": role for role in roles}
