"""Code fingerprints: a short hash of the modules that a stage imports.

The fingerprint is a parameter of the stage's rule, so that changed code reruns the stage. Imports are followed through
the source text, at any depth of a module, without running it. Components that config.yaml names are added by the
caller, because they are imported by name. Comments, docstrings, formatting and imports for type checkers do not count,
nor does the `__init__` of the package itself.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from onestep.components import choices, module_of, outline
from onestep.files import sha256_of_file, write_json

_PACKAGE = "onestep"
_MOST_KEPT = 2000  # parsed files in the cache

STAGES: Mapping[str, tuple[str, ...]] = {
    "prepare": ("onestep.data._archive",),
    "convert": ("onestep.checkpoints.conversion",),
    "average": ("onestep.checkpoints.post_hoc",),
    "embed": ("onestep.evaluation.class_means", "onestep.discriminators"),
    "train": ("onestep.training.run",),
    "sample": ("onestep.sampling._job",),
    "observe": ("onestep.evaluation.fused_sampling",),
    "extract": ("onestep.evaluation.extraction",),
    "measure": ("onestep.evaluation.measurement",),
    "work": ("onestep.bench.work",),
    "study": ("onestep.studies._run",),
    "select": ("onestep.evaluation.selection",),
    "tabulate": ("onestep.report.tabulation",),
    "report": ("onestep.report.evidence", "onestep.report.page"),
}
"""The modules that do the work of each stage; its verb only reads options."""

Component = tuple[str, str]
"""A family and the name of one of its components in config.yaml."""

SameOutput = Mapping[str, Mapping[str, str]]


class Fingerprints:
    """Fingerprints of the source tree of the package `onestep` in `root`; each file is read once.

    `same_output` has earlier fingerprints of code with the same output, by stage and current fingerprint; by default
    those of `fingerprints.yaml` in the package.
    """

    def __init__(self, root: Path | None = None, *, same_output: SameOutput | None = None) -> None:
        self._root = Path(__file__).parent if root is None else Path(root)
        if same_output is None:
            path = self._root / "fingerprints.yaml"
            same_output = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}
        self._same_output: SameOutput = same_output
        self._parsed = _Parsed()
        self._modules: dict[str, tuple[str, frozenset[str]]] = {}
        self._found: dict[tuple[str, ...], str] = {}

    def of_stage(self, stage: str, components: Iterable[Component] = ()) -> str:
        """Return the fingerprint of a stage, 16 hexadecimal digits; ValueError where a component has no file.

        Where an earlier fingerprint is listed whose code gives the same output, return that one.
        """
        now = self.of_modules([*STAGES[stage], *(module_of(family, name) for family, name in components)])
        return self._same_output.get(stage, {}).get(now, now)

    def of_training(self, document: Mapping[str, Any]) -> str:
        """Return the fingerprint of the code that trains a run, whose resolved configuration is `document`."""
        return self.of_stage("train", training_components(document))

    def of_modules(self, modules: Iterable[str]) -> str:
        """Return the fingerprint of modules and all that they import; ValueError where one has no file."""
        wanted = tuple(modules)
        if wanted not in self._found:  # each job of a plan requests the same
            lines = (f"{name} {self._read(name)[0]}" for name in self.closure(wanted))
            self._found[wanted] = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
            self._parsed.keep()
        return self._found[wanted]

    def closure(self, modules: Iterable[str]) -> tuple[str, ...]:
        """Return the names of modules and of all that they import, sorted; ValueError where one has no file."""
        found: set[str] = set()
        waiting = list(modules)
        while waiting:
            name = waiting.pop()
            if name not in found and name != _PACKAGE:
                found.add(name)
                pieces = name.split(".")
                parents = [".".join(pieces[:end]) for end in range(1, len(pieces))]
                waiting += [parent for parent in parents if self._file(parent) is not None]
                waiting += self._read(name)[1]
        return tuple(sorted(found))

    def _read(self, name: str) -> tuple[str, frozenset[str]]:
        if name not in self._modules:
            path = self._file(name)
            if path is None:
                raise ValueError(f"module {name}: got no file, expected one below {self._root} or on the Python path")
            package = name if path.name == "__init__.py" else name.rpartition(".")[0]
            digest, imported = self._parsed.read(path, package=package)
            self._modules[name] = digest, frozenset(self._near(imported, package=package))
        return self._modules[name]

    def _near(self, imported: Iterable[str], *, package: str) -> Iterator[str]:
        """Yield the imported modules that count: of the package, of the working directory, of the same top level."""
        for module in imported:
            top = module.partition(".")[0]
            near = top in (_PACKAGE, package.partition(".")[0]) or (_is_outside(package) and _in([Path()], top))
            if near and self._file(module) is not None:
                yield module

    def _file(self, module: str) -> Path | None:
        if _is_outside(module):
            return _in([Path(), *map(Path, sys.path)], module)
        return _in([self._root], module.partition(".")[2]) if module != _PACKAGE else self._root / "__init__.py"


def training_components(document: Mapping[str, Any]) -> list[Component]:
    """Return the components of a run from its resolved configuration.

    The architecture of a teacher or a backbone is in its file alone, so every network, or every classifier, counts.
    """
    families = {"network": "networks", "classifier": "classifiers", "discriminator": "discriminators"}
    families |= {"codec": "autoencoders", "objective": "objectives"}
    components = [(family, document[key]["name"]) for key, family in families.items() if document.get(key)]
    for block in document.get("networks", {}).values():
        name = block["name"]
        components += [(f, name) for f in ("networks", "discriminators", "ratios") if ":" in name or name in choices(f)]
    components += _inside(document["objective"])
    if document.get("teacher"):
        components += every("networks")
    if document.get("discriminator") or document.get("networks") or document["objective"].get("distance"):
        components += every("classifiers")
    return components


def _inside(objective: Mapping[str, Any]) -> Iterator[Component]:
    """Yield the components in the options of an objective, which its class names in `parts`, at any depth."""
    parts = getattr(outline("objectives", objective["name"]), "parts", {})
    for key, family in {"augment": "augmentations", **parts}.items():
        block = objective.get(key)
        if isinstance(block, Mapping) and isinstance(block.get("name"), str):
            yield family, block["name"]
            yield from _inside(block) if family == "objectives" else ()


def every(family: str) -> list[Component]:
    """Return all components of a family."""
    return [(family, name) for name in choices(family)]


def _is_outside(module: str) -> bool:
    return module.partition(".")[0] != _PACKAGE


def _in(folders: Iterable[Path], module: str) -> Path | None:
    """Return the file of a module in the first folder that has it."""
    for folder in folders:
        place = folder.joinpath(*module.split("."))
        for path in (place / "__init__.py", place.with_name(f"{place.name}.py")):
            if path.is_file():
                return path
    return None


class _Parsed:
    """What parsing a file gives, kept for later processes in the user's cache by the content of the file.

    A cache that cannot be read or written is left out.
    """

    def __init__(self) -> None:
        # Of this version of the code and of Python, since both decide what is found.
        version = sha256_of_file(Path(__file__))[:16]
        folder = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "onestep")
        self._path = folder / f"code-{version}-{sys.version_info[0]}.{sys.version_info[1]}.json"
        self._known: dict[str, tuple[str, list[str]]] = {}
        with contextlib.suppress(OSError, ValueError):
            known = json.loads(self._path.read_text(encoding="utf-8"))
            self._known = {key: (digest, imported) for key, (digest, imported) in known.items()}
        self._used: set[str] = set()
        self._is_new = False

    def read(self, path: Path, *, package: str) -> tuple[str, list[str]]:
        """Return the digest of a module's code, and the names of all that it imports."""
        text = path.read_bytes()
        key = f"{package} {hashlib.sha256(text).hexdigest()}"
        self._used.add(key)
        if key not in self._known:
            tree = _Normal().visit(ast.parse(text, filename=str(path)))
            digest = hashlib.sha256(_canonical(tree).encode()).hexdigest()
            self._known[key] = digest, sorted(set(_imports(tree, package=package)))
            self._is_new = True
        return self._known[key]

    def keep(self) -> None:
        """Write what is new; without the files of earlier versions once there are many."""
        if self._is_new and self._path.is_absolute():
            kept = self._known if len(self._known) <= _MOST_KEPT else {key: self._known[key] for key in self._used}
            with contextlib.suppress(OSError):
                write_json(self._path, kept)
            self._is_new = False


def _imports(tree: ast.AST, *, package: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # Each dot beyond the first climbs one package.
            pieces = package.split(".")
            above = pieces[: len(pieces) - node.level + 1] if node.level else []
            source = ".".join([*above, *filter(None, [node.module])])
            yield from (source, *(f"{source}.{alias.name}" for alias in node.names))


class _Normal(ast.NodeTransformer):
    """Removes what an imported module does not run: bare strings, imports for type checkers, its part as a script."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        is_text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if is_text else self.generic_visit(node)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        # Python 3.12 ends a nested format with an empty text; other versions do not.
        self.generic_visit(node)
        node.values = [each for each in node.values if not (isinstance(each, ast.Constant) and each.value == "")]
        return node

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        self.generic_visit(node)
        never = ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING", "__name__ == '__main__'")
        return node.orelse if never else node


def _canonical(node: object) -> str:
    """Return a syntax tree as text that is the same on every version of Python; `ast.dump` varies."""
    if isinstance(node, list):
        return f"[{','.join(map(_canonical, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    # Newer versions add fields, which are empty in older code; the context of a name follows from its place.
    fields = ((name, value) for name, value in ast.iter_fields(node) if value is not None and value != [])
    written = (f"{name}={_canonical(value)}" for name, value in fields if name not in ("ctx", "kind", "type_comment"))
    return f"{type(node).__name__}({','.join(written)})"
