"""One run from its run.yaml to published snapshots: found finished, taken up, or begun; specs never mix."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import platform
import shutil
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

from onestep import distributed
from onestep.checkpoints.training_state import discard_training_states
from onestep.data._cache import digest_of
from onestep.distributed import Ranks
from onestep.files import canonical_json, read_json, replacing, sha256_of_file, sha256_of_text, write_json
from onestep.training.assembly import assemble
from onestep.training.loop import Training, passes, train

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The files a run trains from.

    Attributes:
        run: Its run.yaml.
        data: The dataset archive.
        teacher: The network it starts from, or None.
        backbones: What its discriminator looks through, by name.
        class_embeddings: The table from which its discriminator's knowledge of classes starts, or None.
    """

    run: Path
    data: Path
    teacher: Path | None = None
    backbones: Mapping[str, Path] = field(default_factory=dict)
    class_embeddings: Path | None = None

    def digests(self) -> dict[str, Any]:
        """Return the SHA-256 of each input's content; a dataset's is read from its card where there is one."""
        return {
            "data": digest_of(self.data),
            "teacher": None if self.teacher is None else sha256_of_file(self.teacher),
            "backbones": {name: sha256_of_file(path) for name, path in self.backbones.items()},
            **({"class_embeddings": sha256_of_file(self.class_embeddings)} if self.class_embeddings else {}),
        }


def carry_out(
    inputs: Inputs,
    *,
    state: Path,
    output: Path,
    code: str,
    code_in_spec: bool,
    state_seconds: float,
    rows_per_pass: int | None = None,
    cache: Path | None = None,
) -> None:
    """Train a run to its end and publish it below `output`; what is done is not done again.

    Args:
        inputs: What it trains from.
        state: Root of the work folders; this run works in `state/{run}/{spec}/`.
        output: Receives `{run}/snapshots/*.safetensors`, `{run}/log.jsonl` and `{run}/summary.json`.
        code: Fingerprint of the training code now running.
        code_in_spec: Whether other code makes another spec, and so trains anew.
        state_seconds: Seconds between two states.
        rows_per_pass: Most rows of a process that pass the networks at once; None for all.
        cache: Folder for decoded pixels that memory has no room for; None is `{state}/.cache`.

    Raises:
        ValueError: An input is not usable, or another process trains this run.
    """
    document = yaml.safe_load(inputs.run.read_text())
    spec = spec_of(document, digests=inputs.digests(), code=code if code_in_spec else None)
    folder = state / document["run"] / spec
    with distributed.joined() as ranks, _alone(folder, ranks=ranks):
        if not (folder / "done.json").exists():
            training = assemble(
                document,
                data=inputs.data,
                teacher=inputs.teacher,
                backbones=inputs.backbones,
                class_embeddings=inputs.class_embeddings,
                ranks=ranks,
                rows_per_pass=rows_per_pass,
                cache=state / ".cache" if cache is None else cache,
            )
            _train(training, folder=folder, ranks=ranks, spec=spec, code=code, state_seconds=state_seconds)
        if ranks.leads:
            publish(folder, output / document["run"])


def spec_of(document: Mapping[str, Any], *, digests: Mapping[str, Any], code: str | None) -> str:
    """Return the 16-digit name of a run's science: resolved config, content of inputs and, where asked, code."""
    science = {"run": document, "inputs": digests} | ({} if code is None else {"code": code})
    return sha256_of_text(canonical_json(science))[:16]


@contextlib.contextmanager
def _alone(folder: Path, *, ranks: Ranks) -> Iterator[None]:
    """Hold the folder's lock while training; the lock of a killed process frees itself."""
    if not ranks.leads:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            owner = file.read() or "another process"
            raise ValueError(f"{folder}: {owner} is training this run; wait for it, or end it first") from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def _train(training: Training, *, folder: Path, ranks: Ranks, spec: str, code: str, state_seconds: float) -> None:
    history = train(training, folder=folder, ranks=ranks, state_seconds=state_seconds, code=code)
    if ranks.leads:
        summary = {"run": training.name, "spec": spec, "code": code, **history, **_facts(training, ranks=ranks)}
        write_json(folder / "done.json", summary)
        # The quota is short: what was needed only to take the run up again goes.
        discard_training_states(folder)


def _facts(training: Training, *, ranks: Ranks) -> dict[str, Any]:
    """Return what a reader of the tables wants to know of a finished run."""
    # Phases switch requires_grad on and off; what the average follows is what trains.
    total = sum(parameter.numel() for parameter in training.published.parameters())
    trainable = sum(average.numel() for average in training.average.state().values())
    return {
        "images_seen": training.images,
        "parameters": total,
        "trainable": trainable,
        "frozen": total - trainable,
        "frozen_share": (total - trainable) / total,
        "world_size": ranks.world,
        "passes": len(passes(ranks.share_of(training.batch), limit=training.rows_per_pass)),
        "device": _device_name(ranks.device),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"


def publish(folder: Path, target: Path) -> None:
    """Place the finished run's files under `target`, each whole; hard links where the file system allows."""
    snapshots = sorted((folder / "snapshots").glob("*.safetensors"))
    # Those of an earlier spec with other counts would pass for this one's.
    for stale in {path.name for path in (target / "snapshots").glob("*")} - {path.name for path in snapshots}:
        (target / "snapshots" / stale).unlink()
    for snapshot in snapshots:
        _link(snapshot, target / "snapshots" / snapshot.name)
    _link(folder / "log.jsonl", target / "log.jsonl")
    # Last, because it says that the rest is there.
    write_json(target / "summary.json", read_json(folder / "done.json"))


def _link(source: Path, target: Path) -> None:
    with replacing(target) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
        # A link keeps the old date; to the workflow this file was made now.
        os.utime(temporary)
