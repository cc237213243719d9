"""Tables of class embeddings: those of this pipeline, and the published one, of which nothing is executed.

This pipeline writes safetensors. The published one is a pickled `torch.nn.Embedding` of StyleGAN-XL (arXiv:2202.00273),
`in_embeddings/tf_efficientnet_lite0.pkl`: features of EfficientNet-lite0, averaged over each class of ImageNet,
[1000, 320] in the usual order of its classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onestep.checkpoints.safe_pickle import kind, read_pickle_file
from onestep.checkpoints.saved_modules import Module, StoredTensor, allowed_globals
from onestep.checkpoints.snapshot import read_tensors, write_tensors
from onestep.files import canonical_json

_KEY = "embed"
_FORMAT = "onestep-class-embeddings-1"
_SUFFIX = ".safetensors"


def write_class_embeddings(path: Path | str, table: Tensor, *, note: Mapping[str, Any]) -> None:
    """Write a table, float32 [K, E], one row per class, complete or not at all; equal input gives equal bytes.

    Args:
        path: Ends in `.safetensors`, by which `read_class_embeddings` recognizes the format; else a ValueError.
        table: The rows.
        note: Where they come from: JSON-able facts.
    """
    if Path(path).suffix != _SUFFIX:
        raise ValueError(f"{path}: expected a name that ends in {_SUFFIX}, by which the format is recognized")
    write_tensors(path, {_KEY: table}, texts={"format": _FORMAT, "note": canonical_json(dict(note))})


def read_class_embeddings(path: Path | str) -> Tensor:
    """Read a table: float32 [K, E], one row per class.

    Args:
        path: A file of `write_class_embeddings` if it ends in `.safetensors`; else the published pickle.

    Raises:
        ValueError: The file is not a pickled dict with one `torch.nn.Embedding` under `embed`, is damaged, or names a
            global that is not allowed; or is not a file of `write_class_embeddings`.
    """
    path = Path(path)
    if path.suffix == _SUFFIX:
        tensors, texts = read_tensors(path)
        if texts.get("format") != _FORMAT:
            raise ValueError(
                f"{path}: not a table of class embeddings (format {texts.get('format')!r}, not {_FORMAT!r})"
            )
        return tensors[_KEY]
    try:
        document, budget = read_pickle_file(path, allowed=allowed_globals)
        if type(document) is not dict or set(document) != {_KEY}:
            raise ValueError(f"the file holds {kind(document)}, not a dict with the one key {_KEY!r}")
        stored = _weight(document[_KEY])
        budget.copy(len(stored.storage.raw))
        if len(stored.size) != 2 or stored.storage.dtype is not torch.float32 or not stored.count:
            raise ValueError(f"the table is {stored.storage.dtype} {list(stored.size)}, not float32 [classes, width]")
        table = torch.as_strided(stored.storage.load(), stored.size, stored.stride, stored.offset).contiguous()
        if not torch.isfinite(table).all():
            raise ValueError("the table has entries that are not finite")
        return table
    except ValueError as error:
        raise ValueError(f"{path}: {error}; expected the published class embeddings, whole") from None


def _weight(module: Any) -> StoredTensor:
    if type(module) is not Module or module.class_name != "Embedding":
        raise ValueError(f"under {_KEY!r} the file holds {kind(module)}, not an embedding")
    match module.state.get("_parameters"):
        case {"weight": StoredTensor() as weight, **others} if not others:
            return weight
    raise ValueError("the embedding does not have exactly one parameter, its weight")
