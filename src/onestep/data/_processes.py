"""Work on many items in several processes, which see one shared object each and hand their answers back as they come.

Every process holds one end of a pipe, and nothing else is shared: a process that dies is noticed at once, and when this
one dies, even by force, the others find their pipes closed and end.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import connection
from typing import Any, TypeVar

_T = TypeVar("_T")
_S = TypeVar("_S")

_WORTH_STARTING = 8.0  # seconds of work for one process; each of several takes some two to start
_TRIED = 1.0  # seconds of work here that tell how long the rest would take


def cores() -> int:
    """Return how many cores this job may use."""
    return len(os.sched_getaffinity(0))


def answers(
    work: Callable[[_S, Any], _T], shared: _S, items: Sequence[Any], *, processes: int
) -> Iterator[tuple[Any, _T]]:
    """Yield each item with `work(shared, item)`, in the order in which they are done.

    The work begins here; processes are started once the first items show that they are worth it.

    Args:
        work: A function at the top level of a module.
        shared: What every process gets once.
        items: What is to be done.
        processes: Most processes to start; with 1 all the work is done here.

    Raises:
        ValueError: What `work` raised, ValueError and OSError alike; or a process ended by itself.
    """
    begun = time.monotonic()
    for done, item in enumerate(items):
        spent = time.monotonic() - begun
        if processes > 1 and done and spent > _TRIED and spent / done * (len(items) - done) > _WORTH_STARTING:
            yield from _by_others(work, shared, items[done:], processes=processes)
            return
        yield item, work(shared, item)


def _by_others(
    work: Callable[[_S, Any], _T], shared: _S, items: Sequence[Any], *, processes: int
) -> Iterator[tuple[Any, _T]]:
    # Spawned, not forked: a fork would share the locks of this process's threads, and the ends of the others' pipes.
    context = multiprocessing.get_context("spawn")
    started: dict[connection.Connection, multiprocessing.process.BaseProcess] = {}
    try:
        for _ in range(min(processes, len(items))):
            here, there = context.Pipe()
            started[here] = context.Process(target=_serve, args=(there, work, shared), daemon=True)
            started[here].start()
            there.close()
        yield from _dealt(items, started)
    finally:
        for process in started.values():
            process.terminate()
        for process in started.values():
            process.join()


def _dealt(
    items: Sequence[Any], started: dict[connection.Connection, multiprocessing.process.BaseProcess]
) -> Iterator[tuple[Any, Any]]:
    """Give each process an item, and the next one whenever it answers."""
    waiting = iter(items)
    busy: dict[connection.Connection, Any] = {}
    for pipe, item in zip(started, waiting, strict=False):
        busy[pipe] = _send(pipe, item, started=started)
    while busy:
        for pipe in connection.wait(list(busy)):
            item = busy.pop(pipe)
            answer = _received(pipe, started=started)
            for following in waiting:
                busy[pipe] = _send(pipe, following, started=started)
                break
            yield item, answer


def _send(pipe: connection.Connection, item: Any, *, started: dict[connection.Connection, Any]) -> Any:
    with contextlib.suppress(BrokenPipeError):  # it has died, which reading from it will tell
        pipe.send(item)
    return item


def _received(pipe: connection.Connection, *, started: dict[connection.Connection, Any]) -> Any:
    try:
        wrong, answer = pipe.recv()
    except (EOFError, ConnectionError) as error:
        started[pipe].join()
        raise ValueError(
            f"one of {len(started)} processes ended by itself (exit code {started[pipe].exitcode}), perhaps for want "
            "of memory; run again, with fewer workers: what is done is kept"
        ) from error
    if wrong is not None:
        raise ValueError(wrong)
    return answer


def _serve(pipe: connection.Connection, work: Callable[[Any, Any], Any], shared: Any) -> None:
    """Answer items until the pipe closes."""
    # Ctrl-C reaches all processes of a terminal; the one that started this one ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            item = pipe.recv()
            try:
                answered = None, work(shared, item)
            except (ValueError, OSError) as error:
                answered = str(error), None
            pipe.send(answered)
