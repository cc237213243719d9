"""The attack: damage of every kind of file before every stage, and mutations of a config; at length, and in short.

`ONESTEP_ATTACK=FILE` writes the figures as Markdown; `ONESTEP_ATTACK_LOG=FILE` has each case when it ends.
"""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from attack import Case, Outcome, Result, attack, cases, faults, table
from damage import DAMAGE
from forks import Forks
from pipeline import Finished

MUTATIONS = int(os.environ.get("ONESTEP_ATTACK_MUTATIONS", "2000"))
# Before the first stages, one damage of each sort.
SHORT = ("a bit in the middle", "truncated", "another file of its kind", "a folder", "deep nesting")


@pytest.fixture(scope="module")
def figures() -> dict[str, Any]:
    """What the tests of this file found, for the report."""
    return {"results": [], "other": {}}


@pytest.fixture(scope="module", autouse=True)
def _report(figures: dict[str, Any]) -> Any:
    yield
    if figures["results"] and (path := os.environ.get("ONESTEP_ATTACK")):
        Path(path).write_text(table(figures["results"], other=figures["other"]), encoding="utf-8")


@pytest.mark.faults
def test_no_damage_of_a_file_passes_in_silence(
    finished: Finished, tmp_path: Path, figures: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    results = attack(finished, cases(finished.stages), scratch=tmp_path, workers=len(os.sched_getaffinity(0)))
    figures["results"] = results
    with capsys.disabled():
        print("\n" + table(results, other={}))
    assert not [result for result in results if not result.outcome.is_right], faults(results)


@pytest.mark.faults
def test_every_kind_of_file_is_read_by_a_stage(finished: Finished) -> None:
    kinds = {case.kind for case in cases(finished.stages)}
    assert kinds == {
        "CIFAR-10 archive", "config.yaml", "EDM pickle", "snapshot", "backbone", "dataset zip", "dataset.json",
        "data card", "run.yaml", "teacher", "class embeddings", "state", "manifest of a state", "log.jsonl",
        "done.json", "metric JSON", "selection", "samples", "extractor", "features", "references", "statistics",
        "summary.json", "grid", "table JSON", "study JSON",
    }  # fmt: skip


@pytest.mark.faults
def test_mutations_of_the_config_are_read_or_refused_in_one_line(
    forks: Forks, tmp_path: Path, figures: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    workers = len(os.sched_getaffinity(0))
    bounds = [MUTATIONS * part // (4 * workers) for part in range(4 * workers + 1)]

    def some(part: tuple[int, int]) -> dict[str, Any]:
        place = tmp_path / f"{part[0]}.json"
        with Forks() as own:
            ended = own.call("faults.mutations:try_all", *part, str(place), folder=tmp_path, limit=3600)
        assert ended.code == 0, ended
        return json.loads(place.read_text())

    with ThreadPoolExecutor(workers) as pool:
        found = list(pool.map(some, zip(bounds, bounds[1:], strict=False)))
    counts = sum((Counter(each["counts"]) for each in found), Counter())
    figures["other"] |= {f"{MUTATIONS} mutations of demo/config.yaml": ", ".join(f"{n} {k}" for k, n in counts.items())}
    with capsys.disabled():
        print("\n" + "\n".join(f"{count:>6} {name}" for name, count in sorted(counts.items())))
    wrong = {seed: what for each in found for seed, what in each["wrong"].items()}
    assert not wrong and set(counts) == {"accepted", "refused"} and max(each["gib"] for each in found) < 3, wrong


def _short(outside: Finished) -> Sequence[Case]:
    return [case for case in cases(outside.stages) if case.damage in SHORT]


@pytest.fixture(scope="module")
def short(forks: Forks, outside: Finished, tmp_path_factory: pytest.TempPathFactory) -> list[Result]:
    """The results of the short form."""
    return attack(outside, _short(outside), scratch=tmp_path_factory.mktemp("attack"), workers=1, own=forks)


@pytest.mark.parametrize("damage", SHORT)
def test_first_stages_refuse_damaged_files(short: list[Result], damage: str) -> None:
    found = [result for result in short if result.case.damage == damage]
    assert found and all(result.outcome.is_right for result in found), faults(found)


@pytest.mark.parametrize("damage", sorted({name for each in DAMAGE.values() for name in each}))
def test_a_damage_is_the_same_each_time_and_changes_the_file(tmp_path: Path, damage: str) -> None:
    import zipfile

    import numpy as np

    content = {
        "json": b'{"a": [1.5, 2, 33], "b": {"c": -4.25e-3}}\n',
        "written by hand": b"a: 1\n",
        "given json": b'{"a": 1.5}\n',
        "given arrays": b"arrays" * 50,
        "pixels": b"pixels" * 50,
        "packed": b"packed" * 50,
    }
    forms = [form for form in DAMAGE if damage in DAMAGE[form]]
    np.savez(tmp_path / "a.npz", x=np.arange(8.0))
    content["arrays"] = (tmp_path / "a.npz").read_bytes()
    header = json.dumps({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    content["tensors"] = len(header).to_bytes(8, "little") + header + bytes(16)
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
        archive.writestr("dataset.json", '{"labels": [["0.png", 1], ["1.png", 2]]}')
    content["dataset.json"] = (tmp_path / "d.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "e.zip", "w") as archive:
        archive.writestr("dataset.json", '{"labels": null}')
    for form in forms:
        other = (tmp_path / "e.zip").read_bytes() if form == "dataset.json" else b"other"
        made = []
        for name in ("first", "second"):
            path = tmp_path / form.replace(".", "_") / name
            path.parent.mkdir(exist_ok=True)
            DAMAGE[form][damage](path, content[form], other, random.Random(1))
            is_file = path.is_file() and not path.is_symlink()
            made.append(path.read_bytes() if is_file else None)
        if form != "dataset.json":  # whose entries have the time of writing
            assert made[0] == made[1]
        assert made[0] != content[form]


def test_right_and_wrong_outcomes() -> None:
    assert {each for each in Outcome if each.is_right} == {Outcome.SAME, Outcome.REFUSED, Outcome.SHOWN}
