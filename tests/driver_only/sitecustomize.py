"""On PYTHONPATH, hides from Python the installed modules that the variable ONESTEP_HIDDEN names."""

import os
from importlib.machinery import PathFinder

_hidden = frozenset(os.environ["ONESTEP_HIDDEN"].split())
_find = PathFinder.find_spec


def _find_spec(name, path=None, target=None):
    return None if name.partition(".")[0] in _hidden else _find(name, path, target)


PathFinder.find_spec = _find_spec
