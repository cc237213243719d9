"""Defaults that depend on other keys: of a run on its objective, of a table on its name.

All other defaults are in the dataclasses and in the constructors of components, each with its source.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from onestep import components
from onestep.config.laws import laws_like, teacher_law
from onestep.config.run import FAST, snapshot_counts

MOST_SNAPSHOTS = 10_000  # of a run
_DROPOUT = 0.0  # of a generator that is fine-tuned: the released training script of D2O


def fill_in(document: Any) -> None:
    """Set the keys that a document of config.yaml lacks, in place; parts of the wrong type are left to later checks."""
    for run in _blocks(document, "runs"):
        _fill_in_run(run, document=document)
    for name, table in _named_blocks(document, "tables"):
        table.setdefault("title", name)


def _fill_in_run(run: dict[str, Any], *, document: Any) -> None:
    published = _constants(run.get("objective"))
    if "codec" not in run and (codec := _codec_of(document, run.get("dataset"))) is not None:
        run["codec"] = codec
    if "classifier" in run:
        run.setdefault("conditional", True)
    if type(run.get("images")) is int:
        run.setdefault("snapshot_every", max(run["images"], 1))
        _count_snapshots(run)
    if run.get("teacher") is not None:
        run.setdefault("preconditioning", _law_of(run, document, wanted=published.get("preconditioning", "edm")))
        run.setdefault("dropout", _DROPOUT)
    for optimizer in _blocks(run, "optimizers"):
        if "betas" in published:
            optimizer.setdefault("betas", list(published["betas"]))
    if run.get("fast") is True:
        _make_fast(run)


def _law_of(run: Mapping[str, Any], document: Any, *, wanted: str) -> str:
    """Return the law that an objective publishes, or the teacher's where its network has another one."""
    law = teacher_law(document, run["teacher"]) if isinstance(run["teacher"], str) else None
    return wanted if law is None or wanted in laws_like(law) else law


def _codec_of(document: Any, dataset: Any) -> dict[str, Any] | None:
    """Return a copy of the codec that makes a dataset of latents; None for other datasets."""
    found = next((block for name, block in _named_blocks(document, "datasets") if name == dataset), {})
    codec = found.get("codec")
    return copy.deepcopy(codec) if isinstance(codec, dict) else None


def _count_snapshots(run: dict[str, Any]) -> None:
    """Add the counts of `snapshot_every` to the stated ones; what is wrong with these keys is found elsewhere."""
    images, every, stated = run["images"], run["snapshot_every"], run.get("snapshots") or []
    is_list = isinstance(stated, list) and all(type(each) is int for each in stated)
    if is_list and type(every) is int and 0 < images <= min(MOST_SNAPSHOTS * every, 10**12):
        run["snapshots"] = list(snapshot_counts(images=images, every=every, stated=stated))


def _make_fast(run: dict[str, Any]) -> None:
    """Set the options of `FAST` that the run has a use for, whatever it or its base has for them."""
    unused = {
        "generator": "classifier" in run,
        "discriminator": run.get("discriminator") is None,
        "fused_optimizer": any(each.get("name") == "radam" for each in _blocks(run, "optimizers")),
    }
    for key, options in zip(("precision", "compile"), FAST, strict=True):
        block = run.setdefault(key, {})
        for option, value in vars(options).items() if isinstance(block, dict) else ():
            if value not in (False, "float32") and not unused.get(option, False):
                block[option] = value


def _constants(objective: Any) -> Mapping[str, Any]:
    """Return the constants of an objective's class; none of one that is not there, which is refused elsewhere."""
    name = objective.get("name") if isinstance(objective, dict) else None
    try:
        return components.describe("objectives", name).constants if isinstance(name, str) else {}
    except (ValueError, ImportError):
        return {}


def _blocks(document: Any, section: str) -> list[dict[str, Any]]:
    return [block for _, block in _named_blocks(document, section)]


def _named_blocks(document: Any, section: str) -> list[tuple[str, dict[str, Any]]]:
    blocks = document.get(section) if isinstance(document, dict) else None
    found = blocks.items() if isinstance(blocks, dict) else ()
    return [(name, block) for name, block in found if isinstance(block, dict)]
