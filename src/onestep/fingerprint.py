"""Which code of the package a stage runs, found without running it, and a short hash of that code.

The hash stands among the parameters of a rule, so that a stage runs again when its code changes, and only then.
Comments, formatting and docstrings do not count, nor do imports that only a type checker sees, nor does the `__init__`
of the top package: a new version number reruns nothing. Imports by name (`components.load`) cannot be seen; callers add
what config.yaml chose.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_PACKAGE = "onestep"
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def code_fingerprint(entry: str, *, plugins: Iterable[str] = (), root: Path | None = None) -> str:
    """Return the hash of the code that `entry` may run; see `Fingerprints.fingerprint`."""
    return Fingerprints(root).fingerprint(entry, plugins=plugins)


def closure(entry: str, *, plugins: Iterable[str] = (), root: Path | None = None) -> tuple[str, ...]:
    """Return the names of the code that `entry` may run; see `Fingerprints.closure`."""
    return Fingerprints(root).closure(entry, plugins=plugins)


@dataclass(frozen=True, kw_only=True)
class _Unit:
    """One statement at the top level of a module; of an import, one name.

    Attributes:
        binds: The names it gives to the module; none where it only acts.
        uses: The names it looks up in the module, at once or when called.
        imports: The modules of the package that it imports, at once or when called.
        text: Its normal form.
    """

    binds: frozenset[str]
    uses: frozenset[str]
    imports: frozenset[str]
    text: str


class Fingerprints:
    """Closures and hashes over one source tree; each file is read once.

    Args:
        root: Folder of the package `onestep`; default: the installed one.
    """

    def __init__(self, root: Path | None = None) -> None:
        self._root = Path(__file__).parent if root is None else Path(root)
        self._units: dict[str, tuple[_Unit, ...]] = {}
        self._digests: dict[str, str] = {}

    def fingerprint(self, entry: str, *, plugins: Iterable[str] = ()) -> str:
        """Return 16 hexadecimal digits that change when the code in the closure does.

        Args:
            entry: A module ("onestep.metrics.frechet"), or one function of a module with what it needs of that module
                ("onestep.cli:measure").
            plugins: Modules that are imported by name at run time, because config.yaml chose them.

        Raises:
            ValueError: The tree holds no such module or function.
        """
        lines = (f"{name} {self._digest(name)}" for name in self.closure(entry, plugins=plugins))
        return _sha256(lines)[:16]

    def closure(self, entry: str, *, plugins: Iterable[str] = ()) -> tuple[str, ...]:
        """Return, sorted, the modules whose code counts; an entry that is a function stands for its module.

        Raises:
            ValueError: The tree holds no such module or function.
        """
        found: set[str] = set()
        waiting = [entry, *plugins]
        while waiting:
            name = waiting.pop()
            if name not in found and name != _PACKAGE:
                found.add(name)
                waiting += _parents(name)
                waiting += [imported for unit in self._read(name) for imported in unit.imports]
        return tuple(sorted(found))

    def _digest(self, name: str) -> str:
        if name not in self._digests:
            self._digests[name] = _sha256(unit.text for unit in self._read(name))
        return self._digests[name]

    def _read(self, name: str) -> tuple[_Unit, ...]:
        """Return the statements of a module, or those that one function of it needs."""
        if name not in self._units:
            module, _, function = name.partition(":")
            self._units[name] = _needed(self._read(module), function, where=module) if function else self._parse(module)
        return self._units[name]

    def _parse(self, module: str) -> tuple[_Unit, ...]:
        path = self._file(module)
        if path is None:
            raise ValueError(
                f"no module {module!r} below {self._root}; expected '{_PACKAGE}.' and the path of a file there"
            )
        tree = _Normal().visit(ast.parse(path.read_text(encoding="utf-8"), filename=str(path)))
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        return tuple(
            _Unit(
                binds=frozenset(_bound(statement)),
                uses=frozenset(_looked_up(statement)),
                imports=frozenset(self._imports(statement, package=package)),
                text=_canonical(statement),
            )
            for statement in _one_name_each(tree.body)
        )

    def _imports(self, statement: ast.stmt, *, package: str) -> Iterator[str]:
        """Yield the modules of the package that a statement imports, at any depth inside it."""
        for node in ast.walk(statement):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names if _is_ours(alias.name))
            elif isinstance(node, ast.ImportFrom) and _is_ours(source := _absolute(node, package=package)):
                yield source
                inner = (f"{source}.{alias.name}" for alias in node.names)
                yield from (module for module in inner if self._file(module) is not None)

    def _file(self, module: str) -> Path | None:
        """Return the file of a module of the package; None where there is none."""
        if not _is_ours(module):
            return None
        folder = self._root.joinpath(*module.split(".")[1:])
        choices = (folder / "__init__.py", folder.parent / f"{folder.name}.py")
        return next((path for path in choices if path.is_file()), None)


def _sha256(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _is_ours(module: str) -> bool:
    return module.split(".")[0] == _PACKAGE


def _parents(name: str) -> list[str]:
    """Return the packages around a module (or around a function's module)."""
    pieces = name.partition(":")[0].split(".")
    return [".".join(pieces[:end]) for end in range(1, len(pieces))]


def _absolute(node: ast.ImportFrom, *, package: str) -> str:
    """Return the full name of what stands after `from`; each dot beyond the first climbs one package."""
    if not node.level:
        return node.module or ""
    pieces = package.split(".")
    return ".".join([*pieces[: len(pieces) - node.level + 1], *filter(None, [node.module])])


def _needed(units: Sequence[_Unit], function: str, *, where: str) -> tuple[_Unit, ...]:
    """Return the statements of a module that one function of it needs; those that only act always count."""
    if not any(function in unit.binds for unit in units):
        raise ValueError(f"no function {function!r} in {where}")
    wanted: set[str] = set()
    waiting = {function}.union(*(unit.uses for unit in units if not unit.binds))
    while waiting:
        wanted |= waiting
        waiting = set().union(*(unit.uses for unit in units if unit.binds & waiting)) - wanted
    return tuple(unit for unit in units if not unit.binds or unit.binds & wanted)


class _Normal(ast.NodeTransformer):
    """Takes out what an imported module does not run: bare strings, type checking, and its part as a script."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        is_text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if is_text else node

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        # Python 3.12 ends a nested format with an empty text; no other version does.
        self.generic_visit(node)
        node.values = [each for each in node.values if not (isinstance(each, ast.Constant) and each.value == "")]
        return node

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        self.generic_visit(node)
        never = ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING", "__name__ == '__main__'")
        return node.orelse if never else node


def _one_name_each(statements: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Split `from x import a, b` in two, so that a function's closure holds only what it uses."""
    for statement in statements:
        if isinstance(statement, ast.Import):
            yield from (ast.Import(names=[alias]) for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom):
            module, level = statement.module, statement.level
            yield from (ast.ImportFrom(module=module, names=[alias], level=level) for alias in statement.names)
        else:
            yield statement


def _bound(node: ast.AST) -> set[str]:
    """Return the names that `node` gives to the scope it stands in."""
    if isinstance(node, _DEFINITIONS):
        return {node.name}
    if isinstance(node, (ast.Lambda, *_COMPREHENSIONS)):
        return set()
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return {alias.asname or alias.name.split(".")[0] for alias in node.names}
    if isinstance(node, ast.Name):
        return {node.id} if isinstance(node.ctx, ast.Store) else set()
    return set().union(*map(_bound, ast.iter_child_nodes(node)))


def _looked_up(node: ast.AST) -> set[str]:
    """Return the names that `node` looks up outside of its functions' own variables: rather too many than too few."""
    if isinstance(node, ast.Name):
        return {node.id} if isinstance(node.ctx, ast.Load) else set()
    if not isinstance(node, _FUNCTIONS):
        return set().union(*map(_looked_up, ast.iter_child_nodes(node)))
    body = node.body if isinstance(node.body, list) else [node.body]
    header = [child for child in ast.iter_child_nodes(node) if child not in body]
    inside = set().union(*map(_looked_up, body)) - _variables(node, body)
    return inside.union(*map(_looked_up, header))


def _variables(function: ast.AST, body: list[ast.AST]) -> set[str]:
    """Return a function's own variables: its arguments and what its body binds, but for what it declares global."""
    shared = {name for part in body for node in ast.walk(part) if isinstance(node, ast.Global) for name in node.names}
    arguments = {node.arg for node in ast.iter_child_nodes(function.args) if isinstance(node, ast.arg)}
    return arguments.union(*map(_bound, body)) - shared


def _canonical(node: object) -> str:
    """Return a syntax tree as text that is the same on every version of Python (`ast.dump` and `unparse` vary)."""
    if isinstance(node, list):
        return f"[{','.join(map(_canonical, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    # Absent and empty fields are left out: newer versions know more of them, and a context follows from the place.
    fields = ((name, value) for name, value in ast.iter_fields(node) if value is not None and value != [])
    written = (f"{name}={_canonical(value)}" for name, value in fields if name not in ("ctx", "kind", "type_comment"))
    return f"{type(node).__name__}({','.join(written)})"
