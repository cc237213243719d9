"""One task at a time in a thread, on copies of tensors that the training changes meanwhile."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Copies:
    """Copies of tensors on the CPU, which may still be under way from a CUDA device."""

    tensors: dict[str, Tensor]
    copied: torch.cuda.Event | None

    def ready(self) -> dict[str, Tensor]:
        """Wait until all are copied, and return them."""
        if self.copied is not None:
            self.copied.synchronize()
        return self.tensors


class Background:
    """A thread for one task at a time; errors of a task are raised by the next `check` or `join`."""

    def __init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = None
        self._task: Future[object] | None = None
        self._pinned: dict[str, Tensor] = {}

    def copied(self, tensors: Mapping[str, Tensor]) -> Copies:
        """Begin to copy tensors; no task may be running.

        Copies from a CUDA device wait in its queue behind the work before them, and neither host nor later work for
        them. They are in pinned memory, which the next call uses again.
        """
        copies, on_cuda = {}, False
        for name, tensor in tensors.items():
            if tensor.is_cuda:
                copies[name] = self._pinned_like(name, tensor).copy_(tensor.detach(), non_blocking=True)
                on_cuda = True
            else:
                copies[name] = tensor.detach().clone()
        return Copies(tensors=copies, copied=torch.cuda.current_stream().record_event() if on_cuda else None)

    def _pinned_like(self, name: str, tensor: Tensor) -> Tensor:
        kept = self._pinned.get(name)
        if kept is None or kept.shape != tensor.shape or kept.dtype != tensor.dtype:
            kept = self._pinned[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return kept

    def start(self, task: Callable[[], object]) -> None:
        """Start a task; the one before it has ended."""
        assert self._task is None, "one task at a time"
        self._thread = self._thread or ThreadPoolExecutor(1, "writer")
        self._task = self._thread.submit(task)

    def check(self) -> None:
        """Raise the error of a task that failed; do not wait."""
        if self._task is not None and self._task.done():
            self.join()

    def join(self) -> None:
        """Wait for the task, and raise its error."""
        task, self._task = self._task, None
        if task is not None:
            task.result()

    def close(self) -> None:
        """Wait for the task and end the thread; an error of the task is a warning."""
        try:
            self.join()
        except Exception as error:
            _logger.warning("a training state was not written: %s", error)
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None
