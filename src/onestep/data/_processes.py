"""Work on many items in several spawned processes, which receive one shared object each."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import connection
from typing import Any, TypeVar

_Shared = TypeVar("_Shared")
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_LEAST_ITEMS = 8  # per process: to start one takes seconds


def in_processes(
    work: Callable[[_Shared, _Item], _Result], shared: _Shared, items: Sequence[_Item], *, workers: int
) -> Iterator[tuple[_Item, _Result]]:
    """Yield each item with `work(shared, item)`, in the order in which they are done.

    `work` is a function at the top level of a module; `shared` is sent to each of at most `workers` processes once.
    With few items the work is done in this process. A worker process that dies is a ValueError.
    """
    workers = min(workers, len(items) // _LEAST_ITEMS)
    if workers < 2:
        yield from ((item, work(shared, item)) for item in items)
        return
    # Spawned, not forked: a fork would share the locks of this process's threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(work, shared)) as pool:
        waiting, pending = iter(items), dict[Future[_Result], _Item]()
        try:
            while True:
                # Few at a time: Python before 3.12.1 may lock up on many thousands.
                pending |= {pool.submit(_run, item): item for item in islice(waiting, 2 * workers - len(pending))}
                if not pending:
                    break
                for future in wait(pending, return_when=FIRST_COMPLETED).done:
                    yield pending.pop(future), future.result()
        except BrokenProcessPool as error:
            found = f"one of {workers} worker processes died, perhaps for lack of memory"
            raise ValueError(f"{found}. Fix: run again with fewer workers; finished work is kept") from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


# In a worker process only: the work and its shared argument, which are sent once and not with every item.
_given: tuple[Callable[[Any, Any], Any], Any] | None = None


def _start(work: Callable[[Any, Any], Any], shared: Any) -> None:
    """Set up a worker process: Ctrl-C is handled by the parent, and the end of the parent ends it."""
    global _given
    _given = work, shared
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "this runs in a worker process"
    connection.wait([parent.sentinel])
    os._exit(1)


def _run(item: Any) -> Any:
    assert _given is not None, "this runs in a worker process"
    work, shared = _given
    return work(shared, item)
