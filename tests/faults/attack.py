"""Each damage of each file that a stage reads: run the stage on a copy, and say what became of it."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import threading
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from damage import DAMAGE, mend, replace
from forks import Ended, Forks
from pipeline import Finished, Stage, outcome

# A bound for one case: the stages take a second, the machine may be slow.
SECONDS = float(os.environ.get("ONESTEP_ATTACK_SECONDS", "60"))


class Outcome(StrEnum):
    """What became of a stage whose file was damaged; those above `DIFFERENT` are right."""

    SAME = "same output"
    REFUSED = "refused, names the file"
    SHOWN = "says missing or damaged, names the file"
    DIFFERENT = "different output, exit 0"
    TRACEBACK = "traceback"
    UNNAMED = "message without the file"
    LONG = "more than one line"
    HANG = "no end"

    @property
    def is_right(self) -> bool:
        """Whether it may be so."""
        return self in (Outcome.SAME, Outcome.REFUSED, Outcome.SHOWN)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One damage of one file before one stage."""

    stage: Stage
    kind: str
    damage: str

    @property
    def form(self) -> str:
        """The form of the file."""
        return self.stage.reads[self.kind][0]

    @property
    def name(self) -> str:
        """Its words in reports."""
        return f"{self.stage.name} | {self.kind} | {self.damage}"


@dataclass(frozen=True, kw_only=True)
class Result:
    """What became of a case, and the last line of its text."""

    case: Case
    outcome: Outcome
    said: str


def cases(stages: Iterable[Stage]) -> list[Case]:
    """Return all cases."""
    return [
        Case(stage=stage, kind=kind, damage=damage)
        for stage in stages
        for kind, (form, _, _) in stage.reads.items()
        for damage in DAMAGE[form]
    ]


def attack(
    finished: Finished, chosen: Sequence[Case], *, scratch: Path, workers: int, own: Forks | None = None
) -> list[Result]:
    """Carry out the cases, each on a copy; a single worker may have a parent of its processes already."""
    whole: dict[str, tuple[dict[str, str], str]] = {}
    waiting: queue.SimpleQueue[Case] = queue.SimpleQueue()
    for case in chosen:
        waiting.put(case)
    results: list[Result] = []
    errors: list[BaseException] = []
    lock = threading.Lock()

    def work(number: int) -> None:
        try:
            with contextlib.nullcontext(own) if own else Forks() as forks:
                while True:
                    try:
                        case = waiting.get_nowait()
                    except queue.Empty:
                        return
                    folder = scratch / str(number)
                    with lock:
                        if case.stage.name not in whole:
                            whole[case.stage.name] = _undamaged(forks, finished, case.stage, folder)
                    results.append(_one(forks, finished, case, folder, whole[case.stage.name]))
                    _report(results[-1])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    order = {id(case): index for index, case in enumerate(chosen)}
    return sorted(results, key=lambda result: order[id(result.case)])


def _report(result: Result) -> None:
    """Append a case to the file that ONESTEP_ATTACK_LOG names, for whoever watches."""
    if path := os.environ.get("ONESTEP_ATTACK_LOG"):
        with open(path, "a", encoding="utf-8") as file:
            print(result.outcome, result.case.name, result.said[:300], sep="\t", file=file)


def _prepared(finished: Finished, stage: Stage, folder: Path) -> None:
    """Make a copy in which the stage has not run."""
    if folder.exists():
        shutil.rmtree(folder)
    finished.copy(folder)
    for made in stage.makes:
        if (folder / made).exists():
            mend(folder / made)


def _undamaged(forks: Forks, finished: Finished, stage: Stage, folder: Path) -> tuple[dict[str, str], str]:
    """Return what the stage writes and says from whole files, which it must do twice alike."""
    found = []
    for _ in range(2):
        _prepared(finished, stage, folder)
        ended = forks.onestep(*stage.words, folder=folder, limit=10 * SECONDS)
        assert ended.code == 0, f"{stage.name}: {ended}"
        found.append((outcome(folder, stage.makes), ended.text if stage.shows else ""))
    assert found[0] == found[1], f"{stage.name}: two runs differ"
    return found[0]


def _one(forks: Forks, finished: Finished, case: Case, folder: Path, whole: tuple[dict[str, str], str]) -> Result:
    stage, (_, name, other) = case.stage, case.stage.reads[case.kind]
    _prepared(finished, stage, folder)
    if not (folder / name).exists():
        shutil.copy2(finished.work / name, folder / name)
    seed = zlib.crc32(case.name.encode())
    replace(folder / name, DAMAGE[case.form][case.damage], other=finished.work / other, seed=seed)
    ended = forks.onestep(*stage.words, folder=folder, limit=SECONDS, idle=4)
    if ended.code == 0 and (folder / name).is_symlink():
        mend(folder / name)  # a link to /dev/zero has no digest
    written = outcome(folder, stage.makes) if ended.code == 0 else {}
    named = [Path(name).name, *([Path(name).parent.name] if case.kind in ("state", "manifest of a state") else [])]
    said = [line for line in ended.text.splitlines() if line.strip()]
    verdict = _judged(stage, ended, said, written, whole, named)
    if verdict is Outcome.DIFFERENT and stage.shows and _is_shown(folder, stage, ended.text, whole[1], named):
        verdict = Outcome.SHOWN
    return Result(case=case, outcome=verdict, said=said[-1] if said else "")


def _judged(
    stage: Stage,
    ended: Ended,
    said: Sequence[str],
    written: Mapping[str, str],
    whole: tuple[dict[str, str], str],
    named: Sequence[str],
) -> Outcome:
    if ended.code is None:
        return Outcome.HANG
    if "Traceback (most recent call last)" in ended.text or ended.code < 0:
        return Outcome.TRACEBACK
    if ended.code == 0:
        same = written == whole[0] and (not stage.shows or ended.text == whole[1])
        return Outcome.SAME if same else Outcome.DIFFERENT
    verb = [line for line in said if line.startswith("onestep ")]
    if not any(each in line for each in named for line in said):
        return Outcome.UNNAMED
    # Of a config each problem has its line.
    is_short = len(verb) == 1 or all(each in line for each in named for line in verb)
    return Outcome.REFUSED if is_short else Outcome.LONG


def _is_shown(folder: Path, stage: Stage, text: str, whole: str, named: Sequence[str]) -> bool:
    """Return whether the output says of the file that it is missing or damaged."""
    texts = [text]
    for made in stage.makes:
        place = folder / made
        for path in place.rglob("*") if place.is_dir() else [place]:
            if path.is_file():
                texts.append(path.read_text(encoding="utf-8", errors="replace"))
    return any(
        name in line and ("missing" in line or "damaged" in line)
        for each in texts
        for line in each.splitlines()
        for name in named
    )


def table(results: Sequence[Result], *, other: Mapping[str, str]) -> str:
    """Return the figures as Markdown: kinds of file by outcome, the totals, and what else was tried."""
    counts: dict[str, Counter[Outcome]] = {}
    for result in results:
        counts.setdefault(result.case.kind, Counter())[result.outcome] += 1
    shown = [each for each in Outcome if any(count[each] for count in counts.values()) or not each.is_right]
    lines = [f"| kind of file | tried | {' | '.join(shown)} |", f"| --- | ---: |{' ---: |' * len(shown)}"]
    counts["all"] = sum(counts.values(), Counter())
    for kind, count in counts.items():
        numbers = " | ".join(str(count[each]) for each in shown)
        lines.append(f"| {kind} | {count.total()} | {numbers} |")
    lines += ["", "| also tried | outcome |", "| --- | --- |"] if other else []
    lines += [f"| {name} | {what} |" for name, what in other.items()]
    return "\n".join(lines) + "\n"


def faults(results: Sequence[Result]) -> str:
    """Return the cases that are not right, one a line."""
    return "\n".join(
        f"{result.outcome}: {result.case.name}: {json.dumps(result.said[:200])}"
        for result in results
        if not result.outcome.is_right
    )
