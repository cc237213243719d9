"""The command line: gathers the verbs of all stages."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import getpass
import importlib
import inspect
import itertools
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, get_type_hints

from cyclopts import App, CycloptsError, Group, Parameter

import onestep
from onestep.components import computing_hidden
from onestep.options import read_as
from onestep.printing import Printing, is_expected, line_of_unexpected, lines_of

# Verbs by name: where they are and what they do. The text is here, so that the overview imports none of them.
PEOPLE = {
    "init": ("onestep.init.verbs:init", "Write a config.yaml for your images and your checkpoint."),
    "run": ("onestep.workflow:run", "Run the workflow to its tables and page."),
    "fetch": ("onestep.fetch.verbs:fetch", "Fetch the input files of config.yaml."),
    "status": ("onestep.verbs:status", "Print the progress of each run."),
    "show": ("onestep.report.verbs:show", "Print a table."),
    "sample": ("onestep.verbs:sample", "Generate images: a picture, a folder or an array."),
    "evaluate": ("onestep.evaluation.verbs:evaluate", "Measure images from anywhere."),
    "compare": ("onestep.report.verbs:compare", "Compare two measurements, runs or results folders."),
    "export": ("onestep.verbs:export", "Write a generator for publication."),
}
PIPELINE = {
    "prepare": ("onestep.data._verbs:prepare", "Write a dataset archive in EDM's format."),
    "convert": ("onestep.checkpoints.verbs:convert", "Convert a published checkpoint to a teacher."),
    "average": ("onestep.checkpoints.verbs:average", "Make a further average of a training."),
    "embed": ("onestep.evaluation.verbs:embed", "Compute class embeddings."),
    "resolve": ("onestep.verbs:resolve", "Write the resolved configuration of a run."),
    "train": ("onestep.training.verbs:train", "Train a run and publish it."),
    "extract": ("onestep.evaluation.verbs:extract", "Extract features of images."),
    "observe": ("onestep.evaluation.verbs:observe", "Generate images and extract features at once."),
    "measure": ("onestep.evaluation.verbs:measure", "Compute one metric of one seed block."),
    "select": ("onestep.evaluation.selection:select", "Select a run's best snapshot by a metric."),
    "study": ("onestep.studies._run:study", "Run a study: arrays, numbers, figure and verdict."),
    "tabulate": ("onestep.report.verbs:tabulate", "Write a table in all formats."),
    "report": ("onestep.report.page:report", "Write the results page."),
}
CLUSTER = {
    "doctor": ("onestep.launch.verbs:doctor", "Check whether this site is ready."),
    "launch": ("onestep.launch.verbs:launch", "Train a run here or as a SLURM job."),
    "cancel": ("onestep.launch.verbs:cancel", "Cancel the SLURM jobs of a run."),
    "bench train": ("onestep.bench.verbs:train", "Measure training speed."),
    "bench launches": ("onestep.bench.verbs:launches", "Count the kernels of a step."),
    "bench work": ("onestep.bench.verbs:work", "Count operations and network passes of a run."),
    "bench workflow": ("onestep.workflow:record_workflow", "Run a workflow and record its time and tables."),
}
GROUPS = {"People": PEOPLE, "Pipeline": PIPELINE, "Cluster": CLUSTER}
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)
WITHOUT_TORCH = frozenset(
    {"run", "fetch", "status", "show", "compare", "resolve", "select", "tabulate", "report", "cancel"}
)
"""Verbs that compute nothing, and so do not wait for torch: they read components as on a machine without it."""
_HELP = "From config.yaml to trained one-step generators, their metrics and a results page."


class _Ended(BaseException):
    """A signal asked this process to end, so that temporary files are removed."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.code = 128 + number


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code.

    Errors of the user and of the site are one line each on stderr, without a traceback: exit code 1, or 2 for a wrong
    command line. Of other errors the line names a file with the traceback. Ctrl-C is 130, another signal 128 and its
    number; verbs that train save their state first.
    """
    _name_the_user()
    _keep_freed_memory()
    words = sys.argv[1:] if arguments is None else list(arguments)
    verb = next((name for verbs in GROUPS.values() for name in verbs if words[: len(name.split())] == name.split()), "")
    prefix = f"onestep {verb}".rstrip()
    hidden = computing_hidden() if verb in WITHOUT_TORCH else contextlib.nullcontext()
    with Printing().installed() as printing, _ended_by_signals(), hidden:
        try:
            code = _run(verb, words, prefix=prefix)
        except (KeyboardInterrupt, _Ended) as end:
            return 130 if isinstance(end, KeyboardInterrupt) else end.code
        # The result of a training is in its files.
        if code == 0 and verb not in ("train", "launch") and (reason := printing.lost()) is not None:
            print(f"{prefix}: standard output: {reason}", file=sys.stderr)
            return 1
        return code


def _name_the_user() -> None:
    """Set LOGNAME for a user id without a name, as in containers; torch needs a name as it is imported."""
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["LOGNAME"] = f"uid{os.getuid()}"


def _keep_freed_memory() -> None:
    """Let glibc keep up to 1 GiB of freed memory for the next tensors.

    By default it returns what exceeds a few MB, and each step of a training pays for thousands of new pages again. No
    number depends on it. Other C libraries have no such call; a user's own setting stays.
    """
    if not any(name.startswith("MALLOC_") for name in os.environ):
        with contextlib.suppress(OSError, AttributeError):
            set_option = ctypes.CDLL(None).mallopt
            set_option(_MMAP_THRESHOLD, 32 << 20)  # the largest that it takes
            set_option(_TRIM_THRESHOLD, 1 << 30)


def _run(verb: str, words: Sequence[str], *, prefix: str) -> int:
    """Run one verb; print its errors."""
    if words in ([], ["bench"]):
        _app("").help_print(words)
        return 2
    # Also the text of an option can be anything.
    try:
        command, bound, *_ = _app(verb).parse_args(words, exit_on_error=False, print_error=False)
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
        logging.raiseExceptions = False
        return int(command(*bound.args, **bound.kwargs) or 0)
    except CycloptsError as error:
        print(f"{prefix}: {' '.join(str(error).split())} See `{prefix} --help`.", file=sys.stderr)
        return 2
    except Exception as error:
        lines = lines_of(error) if is_expected(error) else [line_of_unexpected(error, verb=verb)]
    for line in lines:
        print(f"{prefix}: {line}", file=sys.stderr)
    return 1


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Raise `_Ended` at SIGTERM and SIGHUP, where they would end this process; a second one does."""
    process = os.getpid()

    def end(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        if os.getpid() != process:  # a fork
            os.kill(os.getpid(), number)
        raise _Ended(number)

    is_main = threading.current_thread() is threading.main_thread()
    numbers = [each for each in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(each) == signal.SIG_DFL and is_main]
    for number in numbers:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def _app(chosen: str) -> App:
    """Return the command line; of its verbs only the chosen one is imported."""
    options = Parameter(negative=(), consume_multiple=True, show_default=True)
    app = App(name="onestep", help=_HELP, version=onestep.__version__, default_parameter=options)
    groups = {title: Group(title, sort_key=order) for order, title in enumerate(GROUPS)}
    measured = " ".join(summary for name, (_, summary) in CLUSTER.items() if name.startswith("bench "))
    bench = App(name="bench", help=measured, group=groups["Cluster"], version_flags=())
    for title, verbs in GROUPS.items():
        for name, (place, summary) in verbs.items():
            parent, _, inner = name.rpartition(" ")
            parent_app = bench if parent else app
            group = None if parent else groups[title]
            if name == chosen:
                verb = _typed(place)
                parent_app.command(verb, name=inner, group=group, help_epilogue=_examples(verb))
            else:
                parent_app.command(_unseen, name=inner, group=group, help=summary)
    app.command(bench)
    return app


def _examples(verb: Callable[..., Any]) -> str:
    """Return the examples in a verb's docstring, a command in each line, as Markdown; cyclopts leaves them out."""
    _, _, text = (inspect.getdoc(verb) or "").partition("Examples:\n")
    lines = itertools.takewhile(str.strip, text.splitlines())
    return "\n".join(["Examples:", "", "```bash", *(line.strip() for line in lines), "```"]) if text else ""


def verb_app(verb: str) -> App:
    """Return the command line of one verb, from which its reference is generated."""
    root = found = _app(verb)
    for word in verb.split():
        found = found[word]
    found.default_parameter = root.default_parameter
    return found


def _unseen() -> None:
    """A verb that the command line does not name."""


def _typed(place: str) -> Callable[..., Any]:
    """Import a verb and annotate its parameters with how their text is read."""
    module, _, name = place.partition(":")
    verb = getattr(importlib.import_module(module), name)

    @functools.wraps(verb)
    def command(*arguments: Any, **options: Any) -> Any:
        return verb(*arguments, **options)

    command.__annotations__ = {name: read_as(name, hint) for name, hint in get_type_hints(verb).items()}
    return command
