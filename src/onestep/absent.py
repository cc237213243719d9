"""Stand-ins for torch where it is not installed, so that the files of the family folders can be looked at without it.

A login node reads config.yaml, plans and follows jobs; it computes nothing, and torch is 5 GB. What it wants of a
component is its signature, its docstring, which numbers are better, how often it evaluates: nothing that needs torch,
but the file that says it imports torch at its top. So while such a file is imported, what it takes from torch are
classes to inherit from, to annotate with and to decorate with, that refuse everything else.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NoReturn

_PACKAGES = ("torch",)


class _Refusing(type):
    """Classes whose attributes, however deep, are classes of the same kind; their subclasses have their own only."""

    def __getattr__(cls, name: str) -> Any:
        if cls.__module__ != __name__:
            raise AttributeError(name)
        return _stand_in(f"{cls.__name__}.{name}")


def _stand_in(name: str) -> type:
    """Return what stands for `name`: a base class, an annotation; called, it is a decorator that changes nothing.

    Raises:
        AttributeError: The name is asked for to find out what an object can do; a stand-in can do nothing.
    """
    if name.rpartition(".")[2].startswith("__"):
        raise AttributeError(name)
    return _Refusing(name, (_Absent,), {})


class _Absent(metaclass=_Refusing):
    def __init__(self, *_: Any, **__: Any) -> None:
        if type(self).__module__ != __name__:
            _refuse(type(self).__name__)  # a component that is built, and not only looked at

    def __call__(self, decorated: Any) -> Any:
        return decorated

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        _refuse(f"{type(self).__name__}().{name}")


def _refuse(name: str) -> NoReturn:
    raise ModuleNotFoundError(f"{name}: torch is not installed here; envs/requirements.lock has it", name="torch")


class _Finder:
    """Finds modules of absent packages; stands behind all other finders, so it is asked for nothing that is there."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        absent = name.partition(".")[0] in _PACKAGES
        return importlib.util.spec_from_loader(name, self, is_package=True) if absent else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = ModuleType(spec.name)
        module.__getattr__ = lambda name: _stand_in(f"{spec.name}.{name}")
        return module

    def exec_module(self, module: ModuleType) -> None:
        """A stand-in has nothing to execute."""


@contextlib.contextmanager
def stood_in() -> Iterator[None]:
    """Stand in for torch where it is not installed; afterwards an import of it fails as it should."""
    finder = _Finder()
    sys.meta_path.append(finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name, module in sys.modules.items() if getattr(module, "__loader__", None) is finder]:
            del sys.modules[name]
