from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from textwrap import dedent

import pytest

from onestep.fingerprint import Fingerprints, closure, code_fingerprint

PACKAGE = Path(__file__).parents[1] / "src" / "onestep"

TREE = {
    "__init__.py": """
        '''Top.'''
        __version__ = "1"
    """,
    "cli.py": """
        '''Verbs.'''
        import json
        from onestep import files, plugins

        LIMIT = 3
        OTHER = 4


        def measure(path):
            '''Measure.'''
            from onestep.metrics.frechet import Frechet

            report = _read(path)
            return Frechet()(report, limit=LIMIT)


        def report(path):
            from onestep.page import write

            return write(_read(path), OTHER)


        def _read(path):
            return files.read(path)


        def main():
            for verb in (measure, report):
                verb(plugins.load("x", json.loads("1")))


        if __name__ == "__main__":
            main()
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
    "onestep.cli",
    "onestep.cli:measure",
    "onestep.cli:report",
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
    return {entry: reader.fingerprint(entry) for entry in ENTRIES}


def changed_by(tree: Path, name: str, old: str, new: str) -> set[str]:
    """Return the entries whose fingerprint one edit changes."""
    before = fingerprints(tree)
    text = (tree / name).read_text()
    assert text.count(old) == 1
    (tree / name).write_text(text.replace(old, new))
    after = fingerprints(tree)
    return {entry for entry in ENTRIES if before[entry] != after[entry]}


def test_a_closure_holds_what_an_entry_imports_and_the_packages_around_it(tree: Path) -> None:
    expected = ("onestep.files", "onestep.metrics", "onestep.metrics._distance", "onestep.metrics.recall")
    assert closure("onestep.metrics.recall", root=tree) == expected
    assert closure("onestep.page", root=tree) == ("onestep.files", "onestep.page")


def test_a_functions_closure_holds_only_what_the_function_needs(tree: Path) -> None:
    metric = ("onestep.metrics", "onestep.metrics._distance", "onestep.metrics.frechet")
    assert closure("onestep.cli:measure", root=tree) == ("onestep.cli:measure", "onestep.files", *metric)
    assert closure("onestep.cli:report", root=tree) == ("onestep.cli:report", "onestep.files", "onestep.page")
    assert "onestep.plugins" in closure("onestep.cli:main", root=tree)


def test_modules_that_the_config_chose_count_with_what_they_import(tree: Path) -> None:
    reader, chosen = Fingerprints(tree), ["onestep.metrics.frechet"]
    added = set(reader.closure("onestep.page", plugins=chosen)) - set(reader.closure("onestep.page"))
    assert added == {"onestep.metrics", "onestep.metrics._distance", "onestep.metrics.frechet"}
    assert reader.fingerprint("onestep.page", plugins=chosen) != reader.fingerprint("onestep.page")
    assert reader.fingerprint("onestep.page", plugins=chosen * 2) == reader.fingerprint("onestep.page", plugins=chosen)


NO_CHANGES = {
    "a comment": ("files.py", "    return path", "    # why\n\n    return path  # where from"),
    "format": ("files.py", "    return path", "    return (\n        path\n    )"),
    "a docstring": ("files.py", "    return path", "    '''Read.'''\n    return path"),
    "a module's docstring": ("files.py", "def read", "'''Files.'''\n\n\ndef read"),
    "another docstring": ("cli.py", "'''Measure.'''", "'''Weigh.'''"),
    "a class's docstring": ("metrics/frechet.py", "class Frechet:\n", "class Frechet:\n    '''Distance.'''\n\n"),
    "a constant's docstring": ("cli.py", "LIMIT = 3\n", "LIMIT = 3\n'''Three.'''\n"),
    "quotes": ("cli.py", '"x"', "'x'"),
    "the version": ("__init__.py", '"1"', '"2"'),
    "an import for type checking": (
        "metrics/__init__.py",
        "    from onestep import page",
        "    from onestep import cli",
    ),
    "what only a script runs": ("cli.py", "    main()\n", "    main(), main()\n"),
}


@pytest.mark.parametrize(("name", "old", "new"), NO_CHANGES.values(), ids=NO_CHANGES.keys())
def test_an_edit_that_changes_nothing_that_runs_changes_no_fingerprint(
    tree: Path, name: str, old: str, new: str
) -> None:
    assert changed_by(tree, name, old, new) == set()


EVERY_CLI = {"onestep.cli", "onestep.cli:measure", "onestep.cli:report"}
EVERY_METRIC = {"onestep.metrics", "onestep.metrics.frechet", "onestep.metrics.recall"}
CHANGES = {
    "a module below": (
        "metrics/_distance.py",
        "a - b",
        "b - a",
        {"onestep.cli", "onestep.cli:measure", "onestep.metrics.frechet", "onestep.metrics.recall"},
    ),
    "a module of all": ("files.py", "return path", "return (path, 1)", set(ENTRIES) - {"onestep.metrics"}
                        - {"onestep.metrics.frechet"}),
    "a package's own file": (
        "metrics/__init__.py",
        "from typing",
        "x = 1\nfrom typing",
        EVERY_METRIC | {"onestep.cli", "onestep.cli:measure"},
    ),
    "one verb": ("cli.py", "write(_read(path), OTHER)", "write(OTHER)", {"onestep.cli", "onestep.cli:report"}),
    "a function that two verbs call": ("cli.py", "files.read(path)", "files.read(path, 1)", EVERY_CLI),
    "one verb's constant": ("cli.py", "LIMIT = 3", "LIMIT = 30", {"onestep.cli", "onestep.cli:measure"}),
    "a statement that only acts": ("cli.py", "OTHER = 4", "OTHER = 4\nprint(OTHER)", EVERY_CLI),
    "what no verb uses": ("cli.py", "import json", "import json as json2", {"onestep.cli"}),
    "the loop over the verbs": ("cli.py", '"x"', '"y"', {"onestep.cli"}),
    "a text that is no docstring": ("plugins.py", "return name", "return '' + name", {"onestep.cli"}),
}  # fmt: skip


@pytest.mark.parametrize(("name", "old", "new", "expected"), CHANGES.values(), ids=CHANGES.keys())
def test_an_edit_changes_exactly_the_closures_that_hold_it(
    tree: Path, name: str, old: str, new: str, expected: set[str]
) -> None:
    assert changed_by(tree, name, old, new) == expected


def test_a_functions_own_variable_is_not_the_function_of_that_name(tree: Path) -> None:
    # `measure` has a variable `report`; a default argument or a global declaration would be the function.
    assert "onestep.page" not in closure("onestep.cli:measure", root=tree)
    cli = tree / "cli.py"
    text = cli.read_text()
    cli.write_text(text.replace("def measure(path)", "def measure(path, then=report)"))
    assert "onestep.page" in closure("onestep.cli:measure", root=tree)
    cli.write_text(text.replace("    report = _read(path)", "    global report\n    report = report or _read(path)"))
    assert "onestep.page" in closure("onestep.cli:measure", root=tree)
    cli.write_text(text.replace("limit=LIMIT)", "limit=[report for report in (lambda: OTHER)()])"))
    assert "onestep.page" not in closure("onestep.cli:measure", root=tree)


def test_what_the_tree_does_not_hold_is_named(tree: Path) -> None:
    with pytest.raises(ValueError, match="no module 'onestep.metrics.kid' below .*; expected 'onestep.' and the path"):
        closure("onestep.page", plugins=["onestep.metrics.kid"], root=tree)
    with pytest.raises(ValueError, match="no module 'numpy' below"):
        closure("numpy", root=tree)
    with pytest.raises(ValueError, match="no function 'weigh' in onestep.cli"):
        code_fingerprint("onestep.cli:weigh", root=tree)


def test_a_fingerprint_is_sixteen_hexadecimal_digits_and_does_not_depend_on_the_folder(
    tree: Path, tmp_path: Path
) -> None:
    here = code_fingerprint("onestep.cli:measure", root=tree)
    assert len(here) == 16
    assert int(here, 16) >= 0
    assert here == code_fingerprint("onestep.cli:measure", root=tree.rename(tmp_path / "elsewhere"))


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
    assert code_fingerprint("onestep.files", root=tree) == "68b6cebd403e425f"


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
        assert set(loaded) <= set(reader.closure(name)), name


def test_fingerprints_of_the_whole_package_take_no_time_to_speak_of() -> None:
    names = modules_of(PACKAGE)
    started = time.process_time()
    reader = Fingerprints()
    for name in names * 4:
        reader.fingerprint(name)
    assert time.process_time() - started < 0.02 * len(names) * 4
