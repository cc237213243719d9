"""What a researcher sees of a training while it runs: curves in TensorBoard, a grid of images, and requested numbers.

Nothing here changes the training: images come from the file of a snapshot, their noise from seeds of their own, and
whatever fails is one warning. All files are in the run's work folder, and shown in `results/runs/{run}/`:
`tensorboard/`, `watch/{images}.png` and `watch/{images}.{metric}.json`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from onestep.distributed import Ranks
from onestep.sampling import Sampler
from onestep.training.assembly import Training
from onestep.training.publication import show
from onestep.training.stopping import never
from onestep.watching.grids import sampler_of, write_grid
from onestep.watching.numbers import Asked, Interrupted, unmeasured, write_number
from onestep.watching.sinks import Sink, TensorBoard, WeightsAndBiases

_logger = logging.getLogger(__name__)

# Of the ten minutes that other ranks wait for the first one, for all that is made of a snapshot.
_MOST_SECONDS = 300.0


class Watcher:
    """Watches one training; see `onestep.training.watch.Watch`.

    Args:
        training: What is trained.
        folder: Its work folder, `state/{run}/{run hash}/`.
        ranks: Those of the run; this is the first.
        order: Section `watch` of the config with the files of its numbers, of `onestep.plan.watch.order`; may be empty.
        target: Folder of the published run, in which the files are shown; None shows them in the work folder alone.
        stop: Whether the training received a request to stop, which ends a measurement.
    """

    def __init__(
        self,
        training: Training,
        folder: Path,
        ranks: Ranks,
        *,
        order: Mapping[str, Any],
        target: Path | None,
        stop: Callable[[], bool] = never,
    ) -> None:
        self._training, self._folder, self._ranks, self._target, self._stop = training, folder, ranks, target, stop
        self._asked = [Asked(**each) for each in order.get("numbers", ())]
        self._wandb = order.get("wandb")
        self._sinks: list[Sink] = []
        self._warned: set[str] = set()
        self._sampler: Sampler | None = None
        self._attempt("sample grid", self._choose_sampler)

    def begin(self, images_seen: int) -> None:
        """Open the sinks, and withdraw what was made of snapshots after the state: those are written again."""
        for path in (self._folder / "watch").glob("[0-9]*.*"):
            if int(path.name.partition(".")[0]) > images_seen:
                self._attempt(f"{path}", path.unlink)
        self._open("TensorBoard", lambda: TensorBoard(self._folder / "tensorboard", images_seen=images_seen))
        if self._wandb is not None:
            project, training, folder = self._wandb, self._training, self._folder
            self._open("Weights & Biases", lambda: WeightsAndBiases(training, project=project, folder=folder))
        if images_seen == 0:
            self.snapshots(before=-1, now=0)
        self._show()

    def record(self, record: Mapping[str, Any]) -> None:
        """Send a record of the log to the sinks."""
        numbers = {
            f"{kind}/{name}": value
            for kind in ("losses", "observed", "controls")
            for name, value in record.get(kind, {}).items()
            if value is not None
        }
        for name in ("images_per_second", "memory_mib", "non_finite"):
            numbers[f"training/{name}"] = record[name]
        self._send(lambda sink: sink.numbers(numbers, images_seen=record["images_seen"]))

    def snapshots(self, *, before: int, now: int) -> float:
        """Draw a grid of each new snapshot, and measure the requested numbers that are missing."""
        began = time.monotonic()
        # Those that the run has passed before they were requested do not exist.
        made = {path.stem for path in (self._folder / "snapshots").glob("*.safetensors")}
        counts = [count for count in self._training.snapshots if count <= now and str(count) in made]
        new = [count for count in counts if count > before]
        if self._sampler is None or not new:
            return 0.0
        # A network is built with random weights first, which must not draw from the training's own generators.
        cuda = [self._ranks.device] if self._ranks.device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda):
            for count in new:
                self._attempt("sample grid", lambda count=count: self._draw(count))  # type: ignore[misc]
            self._measure(counts, until=began + _MOST_SECONDS if self._ranks.world > 1 else None)
        self._show()
        return time.monotonic() - began

    def close(self) -> None:
        """Close the sinks."""
        self._send(lambda sink: sink.close())
        self._show()

    def _choose_sampler(self) -> None:
        self._sampler = sampler_of(self._training)

    def _draw(self, count: int) -> None:
        assert self._sampler is not None
        weights, grid = self._folder / f"snapshots/{count}.safetensors", self._folder / f"watch/{count}.png"
        pixels = write_grid(self._training, weights, sampler=self._sampler, device=self._ranks.device, output=grid)
        self._send(lambda sink: sink.image(pixels, images_seen=count))

    def _measure(self, counts: list[int], *, until: float | None) -> None:
        """Measure all that is missing, oldest first, also of earlier snapshots: what they needed may be there now."""

        def goes_on() -> None:
            if self._stop():
                raise Interrupted
            if until is not None and time.monotonic() > until:
                text = f"took more than {_MOST_SECONDS:.0f} s, in which the other ranks wait. Fix: fewer images"
                raise ValueError(text)

        for asked, count in unmeasured(self._asked, counts, folder=self._folder):
            if not self._attempt(f"watch.numbers.{asked.metric}", lambda: self._number(asked, count, goes_on)):  # noqa: B023
                return

    def _number(self, asked: Asked, count: int, goes_on: Callable[[], None]) -> None:
        assert self._sampler is not None
        values = write_number(
            asked,
            self._training,
            count,
            folder=self._folder,
            sampler=self._sampler,
            device=self._ranks.device,
            goes_on=goes_on,
        )
        text = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        _logger.info("%s: %s: %s after %s images", self._training.name, asked.metric, text, f"{count:,}")
        shown = {f"metrics/{asked.metric}.{name}": value for name, value in values.items()}
        self._send(lambda sink: sink.numbers(shown, images_seen=count))

    def _open(self, name: str, make: Callable[[], Sink]) -> None:
        self._attempt(name, lambda: self._sinks.append(make()))

    def _send(self, call: Callable[[Sink], object]) -> None:
        """Call each sink; one that fails is not called again."""
        self._sinks = [sink for sink in self._sinks if self._attempt(sink.name, lambda: call(sink))]  # noqa: B023

    def _show(self) -> None:
        target = self._target
        if target is not None:
            self._attempt(f"{target}", lambda: show(self._folder, target))

    def _attempt(self, name: str, call: Callable[[], object]) -> bool:
        """Return whether a call succeeded; of each name the first failure is a warning."""
        try:
            call()
        except Interrupted:
            return False
        except Exception as error:  # whatever it is, the training continues
            if name not in self._warned:
                self._warned.add(name)
                reason = " ".join(f"{error or type(error).__name__}".split())[:300]
                _logger.warning("%s: %s: %s. The training continues without it", self._training.name, name, reason)
            return False
        return True
