from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from textwrap import dedent

import pytest

from onestep.components import module_of
from onestep.fingerprint import STAGES, Fingerprints

PACKAGE = Path(__file__).parents[1] / "src" / "onestep"

TREE = {
    "__init__.py": """
        '''Top.'''
        __version__ = "1"
    """,
    "verbs.py": """
        '''Verbs.'''
        import json
        from onestep import files, plugins

        LIMIT = 3


        def measure(path):
            '''Measure.'''
            from onestep.metrics.frechet import Frechet

            return Frechet()(files.read(path), limit=LIMIT)


        if __name__ == "__main__":
            measure(plugins.load("x", json.loads("1")))
    """,
    "files.py": """
        def read(path):
            return path
    """,
    "plugins.py": """
        def load(family, name):
            return name
    """,
    "page.py": """
        from .files import read


        def write(x, y):
            return read(x)
    """,
    "metrics/__init__.py": """
        '''Contract.'''
        from typing import TYPE_CHECKING

        if TYPE_CHECKING:
            from onestep import page
    """,
    "metrics/_distance.py": """
        def distance(a, b):
            return a - b
    """,
    "metrics/frechet.py": """
        from . import _distance


        class Frechet:
            def __call__(self, x, limit):
                return _distance.distance(x, limit)
    """,
    "metrics/recall.py": """
        import onestep.files as files
        from ._distance import distance

        zero = distance(files, files)
    """,
}

ENTRIES = (
    "onestep.verbs",
    "onestep.files",
    "onestep.page",
    "onestep.metrics",
    "onestep.metrics.frechet",
    "onestep.metrics.recall",
)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name, text in TREE.items():
        path = tmp_path / "onestep" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text))
    return tmp_path / "onestep"


def fingerprints(tree: Path) -> dict[str, str]:
    reader = Fingerprints(tree)
    return {entry: reader.of_modules([entry]) for entry in ENTRIES}


def changed_by(tree: Path, name: str, old: str, new: str) -> set[str]:
    """Return the entries whose fingerprint one edit changes."""
    before = fingerprints(tree)
    text = (tree / name).read_text()
    assert text.count(old) == 1
    (tree / name).write_text(text.replace(old, new))
    after = fingerprints(tree)
    return {entry for entry in ENTRIES if before[entry] != after[entry]}


def test_a_closure_holds_what_a_module_imports_at_any_depth_and_the_packages_around_it(tree: Path) -> None:
    reader = Fingerprints(tree)
    metrics = ("onestep.metrics", "onestep.metrics._distance")
    assert reader.closure(["onestep.metrics.recall"]) == ("onestep.files", *metrics, "onestep.metrics.recall")
    assert reader.closure(["onestep.page"]) == ("onestep.files", "onestep.page")
    assert reader.closure(["onestep.verbs"]) == (
        "onestep.files",
        *metrics,
        "onestep.metrics.frechet",
        "onestep.plugins",
        "onestep.verbs",
    )


def test_several_modules_count_once_each_in_any_order(tree: Path) -> None:
    reader, both = Fingerprints(tree), ["onestep.page", "onestep.metrics.frechet"]
    assert reader.of_modules(both) == reader.of_modules(both[::-1] * 2) != reader.of_modules(both[:1])


NO_CHANGES = {
    "a comment": ("files.py", "    return path", "    # why\n\n    return path  # where from"),
    "format": ("files.py", "    return path", "    return (\n        path\n    )"),
    "a docstring": ("files.py", "    return path", "    '''Read.'''\n    return path"),
    "a module's docstring": ("files.py", "def read", "'''Files.'''\n\n\ndef read"),
    "another docstring": ("verbs.py", "'''Measure.'''", "'''Weigh.'''"),
    "a class's docstring": ("metrics/frechet.py", "class Frechet:\n", "class Frechet:\n    '''Distance.'''\n\n"),
    "a constant's docstring": ("verbs.py", "LIMIT = 3\n", "LIMIT = 3\n'''Three.'''\n"),
    "quotes": ("verbs.py", 'json.loads("1")', "json.loads('1')"),
    "the version": ("__init__.py", '"1"', '"2"'),
    "an import for type checking": (
        "metrics/__init__.py",
        "    from onestep import page",
        "    from onestep import verbs",
    ),
    "what only a script runs": ("verbs.py", "    measure(plugins", "    print(plugins"),
}


@pytest.mark.parametrize(("name", "old", "new"), NO_CHANGES.values(), ids=NO_CHANGES.keys())
def test_an_edit_that_changes_nothing_that_runs_changes_no_fingerprint(
    tree: Path, name: str, old: str, new: str
) -> None:
    assert changed_by(tree, name, old, new) == set()


EVERY_METRIC = {"onestep.metrics", "onestep.metrics.frechet", "onestep.metrics.recall"}
CHANGES = {
    "a module below": (
        "metrics/_distance.py",
        "a - b",
        "b - a",
        {"onestep.verbs", "onestep.metrics.frechet", "onestep.metrics.recall"},
    ),
    "a module of nearly all": (
        "files.py",
        "return path",
        "return (path, 1)",
        set(ENTRIES) - {"onestep.metrics", "onestep.metrics.frechet"},
    ),
    "a package's own file": (
        "metrics/__init__.py",
        "from typing",
        "x = 1\nfrom typing",
        EVERY_METRIC | {"onestep.verbs"},
    ),
    "a constant": ("verbs.py", "LIMIT = 3", "LIMIT = 30", {"onestep.verbs"}),
    "a text that is no docstring": ("plugins.py", "return name", "return '' + name", {"onestep.verbs"}),
}


@pytest.mark.parametrize(("name", "old", "new", "expected"), CHANGES.values(), ids=CHANGES.keys())
def test_an_edit_changes_exactly_the_closures_that_hold_it(
    tree: Path, name: str, old: str, new: str, expected: set[str]
) -> None:
    assert changed_by(tree, name, old, new) == expected


def test_a_module_without_a_file_is_named(tree: Path) -> None:
    for module in ("onestep.metrics.kid", "module_that_is_nowhere"):
        with pytest.raises(ValueError) as refused:
            Fingerprints(tree).closure(["onestep.page", module])
        assert module in str(refused.value)


def test_a_fingerprint_is_sixteen_hexadecimal_digits_and_does_not_depend_on_the_folder(
    tree: Path, tmp_path: Path
) -> None:
    here = Fingerprints(tree).of_modules(["onestep.page"])
    assert len(here) == 16
    assert int(here, 16) >= 0
    assert here == Fingerprints(tree.rename(tmp_path / "elsewhere")).of_modules(["onestep.page"])


def test_a_component_of_the_working_directory_counts_with_its_own_imports(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    (work / "mine.py").write_text("import numpy\nfrom beside import f\nfrom onestep.page import write\n")
    (work / "beside.py").write_text("def f(): return 1\n")
    module = module_of("metrics", "mine:Distance")
    assert Fingerprints(tree).closure([module]) == ("beside", "mine", "onestep.files", "onestep.page")
    before = Fingerprints(tree).of_modules([module])
    (work / "beside.py").write_text("def f(): return 2  # two\n")
    assert Fingerprints(tree).of_modules([module]) != before


def test_a_stage_has_its_components_and_each_exists() -> None:
    reader = Fingerprints()
    assert all(len(reader.of_stage(stage)) == 16 for stage in STAGES)
    assert reader.of_stage("measure", [("metrics", "frechet")]) != reader.of_stage("measure")


def test_a_listed_earlier_fingerprint_takes_the_place_of_the_current_one(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onestep.fingerprint.STAGES", {"draw": ("onestep.page",), "read": ("onestep.page",)})
    now = Fingerprints(tree).of_stage("draw")
    (tree / "fingerprints.yaml").write_text(f"draw: {{'{now}': '0123456789012345'}}")
    reader = Fingerprints(tree)
    assert (reader.of_stage("draw"), reader.of_stage("read")) == ("0123456789012345", now)
    (tree / "page.py").write_text("x = 1")
    assert Fingerprints(tree).of_stage("draw") not in (now, "0123456789012345")


# Recorded on Python 3.11; 3.12 and 3.13 give the same, or a stage would run again after a change of interpreter.
def test_a_fingerprint_does_not_depend_on_the_version_of_python(tree: Path) -> None:
    (tree / "files.py").write_text(
        dedent("""
        import os as system

        async def read(path: str, *rest, key=None, **more) -> list[int]:
            text = f"{path!r:>{len(rest)}} {key=} {'a' 'b'}" "tail"
            match rest:
                case [first, *_] if (size := len(first)) > 1_000: return [size, 1e-4, 2j, b"x", ...]
            try:
                return [lambda a, /, b: (a, b), *{**more}, {1, 2}, not -1 < 2 <= 3, path[1:2, ::3]]
            except* ValueError as error:
                raise error from None
        """)
    )
    assert Fingerprints(tree).of_modules(["onestep.files"]) == "c41068e8fb75dc0e"


def modules_of(tree: Path) -> list[str]:
    paths = (path.relative_to(tree).with_suffix("") for path in sorted(tree.rglob("*.py")))
    names = (".".join(("onestep", *path.parts)).removesuffix(".__init__") for path in paths)
    return [name for name in names if name not in ("onestep", "onestep.__main__")]


def test_what_really_gets_imported_is_in_the_closure() -> None:
    program = """
        import importlib, json, sys
        for name in sys.argv[1:]:
            importlib.import_module(name)
            print(name, *sorted(each for each in sys.modules if each.startswith("onestep.")))
            for each in [each for each in sys.modules if each == "onestep" or each.startswith("onestep.")]:
                del sys.modules[each]
    """
    names = modules_of(PACKAGE)
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", dedent(program), *names]
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    reader = Fingerprints()
    lines = [line.split() for line in shown.splitlines()]
    assert [name for name, *_ in lines] == names
    for name, *loaded in lines:
        assert set(loaded) <= set(reader.closure([name])), name


def test_fingerprints_of_the_whole_package_take_no_time_to_speak_of() -> None:
    names = modules_of(PACKAGE)
    started = time.process_time()
    reader = Fingerprints()
    for name in names * 4:
        reader.of_modules([name])
    assert time.process_time() - started < 0.02 * len(names) * 4
