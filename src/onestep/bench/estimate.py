"""The GPU memory of a run of a config: an estimate without a GPU and without files, kept by what it depends on."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onestep.bench.recording import source_digest
from onestep.config.reading import run_backbones, run_document
from onestep.config.sections import Experiment
from onestep.files import canonical_json, read_json, sha256_of_text, write_json
from onestep.training.footprint import Footprint, footprint_of

if TYPE_CHECKING:
    from onestep.bench.option_sets import OptionSet

# Keys of a run that change no memory.
_WITHOUT_EFFECT = (
    *("run", "batch", "micro_batch", "images", "snapshot_every", "snapshots", "passed", "non_finite_limit", "seed"),
    *("dataset", "timm", "shard"),
)


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How a run fits a GPU.

    Attributes:
        share: Images of a rank in a step.
        rows: Images of a rank that the run has at once: its `micro_batch`, or the share.
        needed: Peak in bytes, without `onestep.training.footprint.ALLOWANCE`.
        memory: Bytes of the GPU.
        largest: The most images at once that fit, None if none does.
        work: Floating-point operations of an average step, per image.
        saver: The same with `recompute: true`; None if it is unknown or has no effect.
        parts: The same with `shard: true`; None if it is unknown or has no effect.
    """

    share: int
    rows: int
    needed: int
    memory: int
    largest: int | None
    work: float = 0.0
    saver: int | None = None
    parts: int | None = None

    @property
    def is_hopeless(self) -> bool:
        """Whether the run needs more than the GPU has, even without the allowance."""
        return self.needed > self.memory

    @property
    def is_tight(self) -> bool:
        """Whether it fits only without the allowance."""
        return self.largest is None or self.largest < self.rows

    def fix(self, run: str) -> str:
        """Return the remedy in one line."""
        if self.largest:
            return f"runs.{run}.micro_batch: {self.largest}" + (", or recompute: true" if self._saves else "")
        if self.saver:
            return f"runs.{run}.recompute: true and micro_batch: {self.saver}"
        if self.parts:
            return f"runs.{run}.shard: true" + ("" if self.parts >= self.rows else f" and micro_batch: {self.parts}")
        return "a GPU with more memory, or precision: {generator: bfloat16}"

    @property
    def _saves(self) -> bool:
        return self.saver is not None and self.saver >= self.rows

    def line(self) -> str:
        """Return what the run needs, in one line."""
        most = "not one image fits" if self.largest is None else f"at most {self.largest} fit"
        return f"{self.needed / 2**30:.1f} GiB for {self.rows} images at once, {most} {self.memory / 2**30:.4g} GiB"


def fit_of(found: Footprint, *, share: int, micro_batch: int | None, memory: int) -> Fit:
    """Return how a footprint fits `memory` bytes, with a rank's `share` of a batch."""
    rows = min(share, micro_batch or share)
    needed = found.peak(rows, accumulates=rows < share)
    largest = found.largest(share, memory=memory)
    return Fit(share=share, rows=rows, needed=needed, memory=memory, largest=largest, work=found.work)


def kept_footprint(
    experiment: Experiment, run: str, *, folder: Path, recompute: bool | None = None
) -> Footprint | None:
    """Return the footprint of a run, of `folder` or computed now and written there; `recompute` replaces the run's.

    None if it is not known: torch is not installed, the config defines neither the images' shape nor the teacher's
    network, or the run reads values of tensors, which have none on the device `meta`.
    """
    changed = experiment.runs[run] if recompute is None else replace(experiment.runs[run], recompute=recompute)
    experiment = replace(experiment, runs={**experiment.runs, run: changed})
    path = folder / f"{_key(experiment, run)}.json"
    # A file that is not there, is damaged or is of another version.
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return footprint_of(read_json(path))
    if importlib.util.find_spec("torch") is None:
        return None
    # A run may use any operation that fails on the device `meta`, each with an error of its own: no estimate then.
    try:
        found = run_footprint(experiment, run)
    except Exception:
        return None
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, asdict(found))
    return found


def refuse_hopeless(
    experiment: Experiment, run: str, *, processes: int, micro_batch: int | None, memory: int, folder: Path
) -> None:
    """Refuse a run that surely does not fit its GPUs of `memory` bytes; nothing where that is not known.

    Raises:
        ValueError: It needs more; the one line has the remedy.
    """
    if experiment.runs[run].precision.discriminator != "float32":
        return  # its heads are counted in float32, which is too much
    fit = fit_of_run(experiment, run, processes=processes, micro_batch=micro_batch, memory=memory, folder=folder)
    if fit is not None and fit.is_hopeless:
        expected = f"expected at most {memory / 2**30:.4g} GiB, those of its GPU"
        raise ValueError(
            f"runs.{run}: got {fit.needed / 2**30:.1f} GiB for {fit.rows} images at once, {expected}. "
            f"Fix: {fit.fix(run)}"
        )


def fit_of_run(
    experiment: Experiment, run: str, *, processes: int, micro_batch: int | None = None, memory: int, folder: Path
) -> Fit | None:
    """Return how a run fits GPUs of `memory` bytes, one for each of its processes; None if that is not known.

    `micro_batch` replaces the run's. With `shard: true` denoisers are divided. See `kept_footprint`.
    """
    found = kept_footprint(experiment, run, folder=folder)
    if found is None:
        return None
    block = experiment.runs[run]
    share = block.batch // processes
    whole = found
    found = whole.divided(processes) if block.shard else whole
    fit = fit_of(found, share=share, micro_batch=micro_batch or block.micro_batch, memory=memory)
    if not fit.is_tight:
        return fit
    if not block.shard and processes > 1:
        fit = replace(fit, parts=whole.divided(processes).largest(share, memory=memory))
    if block.recompute:
        return fit
    saver = kept_footprint(experiment, run, folder=folder, recompute=True)
    if saver is not None and block.shard:
        saver = saver.divided(processes)
    return replace(fit, saver=None if saver is None else saver.largest(fit.share, memory=memory))


def gpu_memory() -> int | None:
    """Return the bytes of the smallest GPU of this machine, without torch; None if there is none."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        return min(int(line) for line in answer.stdout.splitlines()) << 20
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def run_footprint(
    experiment: Experiment,
    run: str,
    *,
    options: OptionSet | None = None,
    given: Mapping[str, int | None] | None = None,
    on_cuda: bool = True,
) -> Footprint:
    """Compute the footprint of a run, by default with its own execution settings.

    Raises:
        ValueError: Nothing defines the shape of its images (`given` does), or its teacher's architecture.
    """
    from onestep.bench.option_sets import own_options
    from onestep.bench.random_run import random_training, random_wrapped, shape_of
    from onestep.training.memory import footprint
    from onestep.training.nowhere import NOWHERE

    shape = shape_of(experiment, run, given=given or {})
    chosen = (options or own_options(experiment.runs[run])).without_devices()

    def build() -> Any:
        training = random_training(experiment, run, options=chosen, shape=shape, batch=1, ranks=NOWHERE)
        return training, random_wrapped(training, options=chosen)

    return footprint(build, on_cuda=on_cuda)


def _key(experiment: Experiment, run: str) -> str:
    """Return the hash of what an estimate depends on: the run's blocks, the networks that it names, and the code."""
    block = experiment.runs[run]
    own = {key: value for key, value in run_document(experiment, run).items() if key not in _WITHOUT_EFFECT}
    data = experiment.datasets[block.dataset]
    teacher = None if block.teacher is None else experiment.teachers[block.teacher]
    source = None if teacher is None or teacher.run is None else _key(experiment, teacher.run)
    names = [str(experiment.backbones[name]) for name in run_backbones(block)]
    given = None if teacher is None or teacher.input is None else str(experiment.inputs[teacher.input])
    content = [own, str(data), source, given, teacher and teacher.input, names, source_digest()]
    return sha256_of_text(canonical_json(content))[:16]
