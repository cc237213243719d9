"""Writes genuine files of EDM's persistence format, without EDM: real torch modules, pickled as its decorator does.

Only while a file is written is there an importable `torch_utils.persistence`, because pickle insists on it.
"""

from __future__ import annotations

import contextlib
import io
import pickle
import pickletools
import sys
import types
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

SOURCE = '"""Source text of a module, which an ordinary unpickler would execute."""\n' + "x = 1\n" * 2000
_BUFFERS = ("resample_filter", "freqs", "running_mean", "running_var", "num_batches_tracked")


def reconstruct(meta: dict[str, Any]) -> nn.Module:
    """Make the module anew from its state, as EDM does, but of a class known here."""
    module = PersistentModule.__new__(PersistentModule)
    module.__setstate__(meta["state"] | {"class_name": meta["class_name"]})
    return module


class EasyDict(dict[str, Any]):
    """Stands for dnnlib.util.EasyDict, a dict."""


class PersistentModule(nn.Module):
    """Stands for any of EDM's network classes."""

    def __init__(self, class_name: str, **arguments: Any) -> None:
        super().__init__()
        self.class_name = class_name
        self.skip_scale = np.sqrt(0.5)
        self._init_args = ()
        self._init_kwargs = arguments

    def __reduce__(self) -> tuple[Any, ...]:
        state = {key: value for key, value in self.__dict__.items() if key != "class_name"}
        meta = {"type": "class", "version": 6, "module_src": SOURCE, "class_name": self.class_name, "state": state}
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (meta,)


def network(arrays: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> PersistentModule:
    """Build the module tree that has `arrays` as its state dict."""
    root = PersistentModule("EDMPrecond", **config)
    for name, array in arrays.items():
        *parts, leaf = name.split(".")
        module: nn.Module = root
        for part in parts:
            if part not in module._modules:
                module.add_module(part, nn.ModuleDict() if part in ("enc", "dec") else PersistentModule("Part"))
            module = module._modules[part]
        value = torch.from_numpy(np.array(array))
        if leaf in _BUFFERS:
            module.register_buffer(leaf, value)
        else:
            module.register_parameter(leaf, nn.Parameter(value, requires_grad=False))
            module._buffers.setdefault("resample_filter", None)
    return root.eval()


@contextlib.contextmanager
def importable() -> Iterator[None]:
    """Let pickle find what EDM's files name: torch_utils.persistence and dnnlib.util."""
    names = ("torch_utils", "torch_utils.persistence", "dnnlib", "dnnlib.util")
    modules = {name: types.ModuleType(name) for name in names}
    modules["torch_utils.persistence"]._reconstruct_persistent_obj = reconstruct
    modules["dnnlib.util"].EasyDict = EasyDict
    EasyDict.__module__ = "dnnlib.util"
    reconstruct.__module__ = "torch_utils.persistence"
    reconstruct.__name__ = reconstruct.__qualname__ = "_reconstruct_persistent_obj"
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]


def dump(document: Any, *, protocol: int = 4) -> bytes:
    """Pickle a document that may hold persistent modules."""
    with importable():
        return pickle.dumps(document, protocol=protocol)


def unpickle(content: bytes) -> Any:
    """Load a file as EDM would: the oracle of what is in it. For files written here only."""
    # numpy and torch warn of the old names, which is what some of these files are about.
    with importable(), warnings.catch_warnings(action="ignore"):
        return pickle.loads(content)


def aged(module: nn.Module) -> nn.Module:
    """Give a module tree the shape of torch 1.12: ordered dicts, and none of the newer hooks."""
    newer = ("_with_kwargs", "_always_called", "_state_dict_pre_hooks", "_backward_pre_hooks", "_post_hooks")
    for part in module.modules():
        for key, value in list(part.__dict__.items()):
            if key.endswith(newer):
                del part.__dict__[key]
            elif type(value) is dict and key.startswith("_") and key != "_init_kwargs":
                part.__dict__[key] = OrderedDict(value)
    return module


def with_old_names(content: bytes) -> bytes:
    """Rewrite a stream so that it names numpy's parts as numpy 1 did; frames, which hold lengths, are dropped."""
    new, old = "numpy._core.multiarray", "numpy.core.multiarray"
    operations = list(pickletools.genops(content))
    ends = [position for _, _, position in operations[1:]] + [len(content)]
    written = io.BytesIO()
    for (opcode, argument, start), end in zip(operations, ends, strict=True):
        piece = content[start:end]
        if opcode.name == "SHORT_BINUNICODE" and argument == new:
            piece = b"\x8c" + bytes([len(old)]) + old.encode()
        elif opcode.name == "GLOBAL":
            piece = piece.replace(new.encode(), old.encode())
        elif opcode.name == "FRAME":
            piece = b""
        written.write(piece)
    return written.getvalue()
