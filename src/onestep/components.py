"""Components: the classes that config.yaml names, from the package and from outside.

A family is a folder of the package (`objectives`, `metrics`, ...). Each of its files has one public class, but for
`verbs.py` and files with a leading underscore. Classes from outside are named `my_module:MyClass`, with a module of the
working directory or of an installed package, or by an entry point of the group `onestep.FAMILY`.

A login node reads config.yaml without torch. There a class whose file cannot be imported is replaced by its outline:
the statements of the file are run one by one, base classes and decorators from missing packages are left out, and
statements that need these packages are skipped. Constructor signatures, constants, checks of options and arithmetic on
them remain. A check that needs a missing package runs where the package is installed. Verbs that compute nothing hide
torch from themselves and work in this way everywhere.
"""

from __future__ import annotations
import __future__

import ast
import builtins
import contextlib
import functools
import importlib
import importlib.util
import inspect
import os
import sys
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

_PACKAGE = "onestep"
_ROOT = Path(__file__).parent
_VERBS = "verbs"  # the file of a folder's commands, which is no component
_OUTLINE = " (outline)"  # end of the name of a module of outlines
_outlines: dict[str, dict[str, Any]] = {}  # of the package's modules that cannot be imported here, and what they import
_builds_networks = ContextVar("builds_networks", default=True)
_hidden: set[str] = set()  # packages that this process does not import, although they are here
_COMPUTING = ("torch", "timm", "torchvision")  # packages that take seconds to import


class Block(Protocol):
    """A component of the typed config."""

    @property
    def name(self) -> str:
        """A choice of the family, or `module:Class`."""

    @property
    def options(self) -> Mapping[str, Any]:
        """Keyword arguments of the class."""


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """An option of a component."""

    hint: Any  # `Any` where the annotation cannot be evaluated without a missing package
    default: Any = inspect.Parameter.empty  # for a required option

    @property
    def is_required(self) -> bool:
        """Whether there is no default."""
        return self.default is inspect.Parameter.empty


@dataclass(frozen=True, kw_only=True)
class Description:
    """What is known of a component without building it."""

    parameters: Mapping[str, Parameter]  # keyword-only arguments of its constructor
    constants: Mapping[str, Any]  # public class attributes (`ClassVar`), without functions, properties and defaults
    doc: str


def choices(family: str) -> tuple[str, ...]:
    """Return the names of a family's components, sorted: entry points, and files other than `_*.py` and `verbs.py`."""
    return tuple(sorted(_files(family) | _entry_points(family).keys()))


def load(family: str, name: str) -> Any:
    """Return the class of a component: of a choice of the family, or of `module:Class`.

    Raises:
        ValueError: There is no such component, or its constructor has other arguments than keyword-only ones.
        ModuleNotFoundError: Its file imports a package that is not installed.
    """
    module, attribute = _address(family, name)
    try:
        imported = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and (module == error.name or module.startswith(f"{error.name}.")):
            raise ValueError(f"{name}: no module {module!r} in {Path.cwd()} or among the installed packages") from error
        raise
    return _class_in(vars(imported), attribute, name=name, module=module)


def outline(family: str, name: str) -> Any:
    """Return the class of a component; without the packages that its file needs, its outline. Raises as `load`."""
    module, attribute = _address(family, name)
    cached = _outlines.get(module, {}) if attribute is None else {}
    if cached.get("__all__", [""])[0] in cached:
        return _class_in(cached, attribute, name=name, module=module)
    try:
        return load(family, name)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.partition(".")[0] == _PACKAGE:
            raise
        known = dict(_outlines)
        names = _outlined(module, known)
        if (attribute or names["__all__"][0]) not in names:
            with computing_shown():
                return load(family, name)
        # Those from outside belong to a working directory.
        _outlines.update({each: found for each, found in known.items() if each.partition(".")[0] == _PACKAGE})
        return _class_in(names, attribute, name=name, module=module)


def build(family: str, block: Mapping[str, Any] | Block, **supplied: Any) -> Any:
    """Build a component from `{"name": "d2o", "sigma": 80.0, ...}`, or from a block of the typed config.

    The pipeline gives the arguments in `supplied`.

    Raises:
        ValueError: There is no such component, it has no such option, or it refuses a value.
    """
    name, options = _name_and_options(block)
    return _built(load(family, name), name, {**options, **supplied})


def build_outline(family: str, block: Mapping[str, Any] | Block) -> Any | None:
    """Build a component or its outline, for its attributes; None if it needs a missing package. Raises as `build`."""
    name, options = _name_and_options(block)
    component = outline(family, name)
    try:
        return _built(component, name, options)
    except ValueError:
        raise
    except Exception:
        # An outline fails where it needs what it lacks; a complete class has no such excuse.
        if not is_outline(component):
            raise
    with computing_shown():
        component = outline(family, name)
        return None if is_outline(component) else _built(component, name, options)


def build_part(family: str, block: Mapping[str, Any]) -> Any:
    """Build a component within another's block, or its outline. ModuleNotFoundError: it needs a missing package."""
    built = build_outline(family, block)
    if built is None:
        raise ModuleNotFoundError(f"{block['name']}: got no torch, which it needs")
    return built


def is_outline(component: Any) -> bool:
    """Return whether a class is an outline."""
    return component.__module__.endswith(_OUTLINE)


def describe(family: str, name: str) -> Description:
    """Return what is known of a component or its outline; ValueError where there is none."""
    component = outline(family, name)
    # Fields of a dataclass may be those of a base in another module.
    names = ChainMap(*(getattr(each.__init__, "__globals__", {}) for each in component.__mro__))
    parameters = {
        key: Parameter(hint=_evaluated(each.annotation, names), default=each.default)
        for key, each in inspect.signature(component).parameters.items()
    }
    functions = (property, staticmethod, classmethod)
    return Description(
        parameters=parameters,
        constants={
            key: value
            for key, value in vars(component).items()
            if not (key.startswith("_") or key in parameters or callable(value) or isinstance(value, functions))
        },
        doc=inspect.getdoc(component) or "",
    )


def module_of(family: str, name: str) -> str:
    """Return the dotted name of a component's module; ValueError where the family has no such choice."""
    return _address(family, name)[0]


def hide_computing() -> None:
    """Read components from here on as without torch and timm, which take seconds to import.

    Nothing is hidden that this process has imported already; what needs a built component shows them again.
    """
    hidden = [name for name in _COMPUTING if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    _hidden.update(hidden)


@contextlib.contextmanager
def computing_hidden() -> Iterator[None]:
    """The same until the end of a block, in which configs are not checked by building their networks."""
    token = _builds_networks.set(False)
    hide_computing()
    try:
        yield
    finally:
        _builds_networks.reset(token)
        if _hidden:
            _show()
            _outlines.clear()


def builds_networks() -> bool:
    """Whether a config is checked by building its networks."""
    return _builds_networks.get()


@contextlib.contextmanager
def computing_shown() -> Iterator[None]:
    """Show what is hidden, with classes in the place of their outlines."""
    outlines = dict(_outlines)
    _show()
    _outlines.clear()
    try:
        yield
    finally:
        _outlines.update(outlines)


def _show() -> None:
    """Show what `hide_computing` has hidden, and nothing that is absent for another reason."""
    for name in _hidden:
        if name in sys.modules and sys.modules[name] is None:
            del sys.modules[name]
    _hidden.clear()


def search_in(folder: Path) -> None:
    """Add a folder to those from which `module:Class` is imported, after installed packages."""
    if (entry := str(folder.resolve())) not in sys.path:
        sys.path.append(entry)


# Requested at each block of a config: names of the package's files, and of all installed packages' entry points.
@functools.cache
def _files(family: str) -> frozenset[str]:
    return frozenset(path.stem for path in (_ROOT / family).glob("[!_]*.py")) - {_VERBS}


def _entry_points(family: str) -> Mapping[str, EntryPoint]:
    return _found_by(entry_points, f"{_PACKAGE}.{family}", path=tuple(map(_state, sys.path)))


@functools.lru_cache(maxsize=64)
def _found_by(find: Callable[[], Any], group: str, *, path: tuple[Any, ...]) -> Mapping[str, EntryPoint]:
    """Return the entry points of a group; `path` is the state of the folders where packages are installed."""
    return {each.name: each for each in reversed(tuple(_all_found_by(find, path=path).select(group=group)))}


@functools.lru_cache(maxsize=1)
def _all_found_by(find: Callable[[], Any], *, path: tuple[Any, ...]) -> Any:
    return find()


def _state(folder: str) -> tuple[Any, ...]:
    """Return what changes when a package is installed in a folder of the path."""
    try:
        found = os.stat(folder or os.curdir)
    except OSError:
        return (folder,)
    return folder, found.st_dev, found.st_ino, found.st_mtime_ns


def _address(family: str, name: str) -> tuple[str, str | None]:
    """Return the module of a component and its class; None for the one public name of a family's file."""
    search_in(Path.cwd())
    module, colon, attribute = name.partition(":")
    if colon:
        if not (module and all(part.isidentifier() for part in (*module.split("."), attribute))):
            raise ValueError(f"{name!r}: expected module:Class, such as my_module:MyClass")
        return module, attribute
    if name in _files(family):
        return f"{_PACKAGE}.{family}.{name}", None
    if (found := _entry_points(family).get(name)) is not None:
        return found.module, found.attr
    raise ValueError(f"no {family} called {name!r}; choices: {', '.join(choices(family))}, or module:Class")


def _file(module: str) -> Path:
    with contextlib.suppress(ModuleNotFoundError):
        spec = importlib.util.find_spec(module)
        if spec is not None and spec.origin is not None:
            return Path(spec.origin)
    # The parent package may import a missing package; its folder is still on the path.
    path = _ROOT.parent.joinpath(*module.split("."))
    for found in (path.with_suffix(".py"), path / "__init__.py"):
        if found.is_file():
            return found
    raise ValueError(f"no module {module!r} in {Path.cwd()} or among the installed packages")


def _class_in(names: Mapping[str, Any], attribute: str | None, *, name: str, module: str) -> Any:
    """Return a class of a module after a check that options can be passed by name, and only by name."""
    if attribute is None:
        (attribute,) = names["__all__"]
    if attribute not in names:
        own = [each for each, value in names.items() if getattr(value, "__module__", "").startswith(module)]
        public = [each for each in own if inspect.isclass(names[each]) and not each.startswith("_")]
        raise ValueError(f"{name}: module {module} has no {attribute}, expected one of: {', '.join(public) or 'none'}")
    component = names[attribute]
    if not inspect.isclass(component):
        raise ValueError(f"{name}: got {type(component).__name__}, expected a class")
    for each in inspect.signature(component).parameters.values():
        if each.kind is not each.KEYWORD_ONLY:
            raise ValueError(f"{name}: argument {each.name!r} of the constructor is not keyword-only")
    return component


def _name_and_options(block: Mapping[str, Any] | Block) -> tuple[str, dict[str, Any]]:
    if not isinstance(block, Mapping):
        return block.name, dict(block.options)
    if not isinstance(block.get("name"), str):
        raise ValueError(f"name: got {block.get('name')!r}, expected the name of a component")
    return block["name"], {key: value for key, value in block.items() if key != "name"}


def _built(component: Any, name: str, options: Mapping[str, Any]) -> Any:
    signature = inspect.signature(component)
    try:
        signature.bind(**options)
    except TypeError as error:
        raise ValueError(f"{name}: {error}; options: {', '.join(signature.parameters)}") from error
    return component(**options)


def _evaluated(annotation: Any, names: Mapping[str, Any]) -> Any:
    """Return the type that an annotation names; `Any` without one, or where a package that it needs is missing."""
    if annotation is inspect.Parameter.empty:
        return Any
    try:
        return eval(annotation, {}, names) if isinstance(annotation, str) else annotation
    except (NameError, AttributeError, TypeError):
        return Any


def _outlined(module: str, known: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the names of a module, as far as they can be defined here; `known` has those of other modules."""
    if module not in known:
        alias = f"{module}{_OUTLINE}"
        sys.modules[alias] = ModuleType(alias)  # dataclasses look up the module of a class
        known[module] = vars(sys.modules[alias])
        try:
            for statement in ast.parse(_file(module).read_text(encoding="utf-8")).body:
                _run(statement, known[module], known)
        finally:
            del sys.modules[alias]
    return known[module]


def _run(statement: ast.stmt, names: dict[str, Any], known: dict[str, dict[str, Any]]) -> None:
    code = ast.Module(body=[_Trimmed(names).visit(statement)], type_ignores=[])
    try:
        exec(compile(code, "<outline>", "exec", __future__.annotations.compiler_flag), names)
    except ModuleNotFoundError:
        if isinstance(statement, ast.ImportFrom) and (statement.module or "").partition(".")[0] == _PACKAGE:
            found = _outlined(statement.module or "", known)
            here = [each for each in statement.names if each.name in found]
            names.update({each.asname or each.name: found[each.name] for each in here})
    except Exception:
        # The statement uses a name that is missing; whatever needs its result is missing, too.
        return


class _Trimmed(ast.NodeTransformer):
    """Leaves out decorators and base classes whose names are not defined."""

    def __init__(self, names: Mapping[str, Any]) -> None:
        self._names = names

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        node.bases = list(filter(self._is_defined, node.bases))
        return self.generic_visit(self.visit_FunctionDef(node))

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.ClassDef) -> ast.AST:
        node.decorator_list = list(filter(self._is_defined, node.decorator_list))
        return node

    def _is_defined(self, expression: ast.expr) -> bool:
        while not isinstance(expression, ast.Name):
            inner = getattr(expression, "func", None) or getattr(expression, "value", None)
            if not isinstance(inner, ast.expr):
                return True
            expression = inner
        return expression.id in self._names or hasattr(builtins, expression.id)
