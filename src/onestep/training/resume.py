"""Complete training states: on a CPU a resumed run ends bitwise equal to an uninterrupted one (docs/running.md)."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from onestep import distributed
from onestep.checkpoints.training_state import (
    TrainingState,
    load_optimizer,
    optimizer_tensors,
    read_training_state,
    write_training_state,
)
from onestep.distributed import Ranks
from onestep.files import sha256_of_file
from onestep.run_record import link
from onestep.training import coupled
from onestep.training.assembly import Training
from onestep.training.background import Background
from onestep.training.execution import Execution
from onestep.training.log import RunLog, Settled, Window, flaw_of_log, role_files, snapshot_files, write_snapshots
from onestep.training.stopping import never

_logger = logging.getLogger(__name__)

# What a rank requests between two steps; all ranks do the highest of the requests.
_CONTINUE, _SAVE, _STOP = range(3)


class Resume:
    """Writes and reads the states of one run in one folder.

    A state contains trained networks and those that follow them; of frozen ones, their digests. Batch-norm statistics
    of a discriminator's heads are local to a rank; those of rank 0 are saved. They affect no result, because the heads
    are used in training mode only.
    """

    def __init__(
        self, training: Training, *, folder: Path, ranks: Ranks, code: str, published: Path | None = None
    ) -> None:
        self._training, self._folder, self._ranks = training, folder, ranks
        self._published = published  # folder that may have a snapshot which is gone from `folder`
        self._frozen = {role: _digest(training.networks[role]) for role in sorted(training.frozen)}
        self._networks = {role: each for role, each in training.networks.items() if role not in self._frozen}
        self.log, self.window = Settled(0, ""), Window()
        self._writer = Background()
        # SHA-256 of the run's snapshots so far, by their names in the folder; in rank 0 only.
        self.files: dict[str, str] = {}
        # Differs from run.yaml on a CPU, as in the reference, whose half precision is for CUDA devices.
        asked = training.execution.bfloat16
        self._bfloat16 = asked if ranks.device.type == "cuda" else frozenset[str]()
        self._restarts, self._codes, self._seconds = 0, [code], 0.0
        self._began = self._written_at = time.monotonic()
        self._images_written = 0

    def restore(self, *, stop: Callable[[], bool] = never) -> int:
        """Load the newest valid state whose snapshots and log are whole, and return its images seen.

        Without one, broadcast from rank 0, write the snapshots of the start, and return 0.

        Raises:
            Left: A request to stop came before the first step; nothing is kept.
        """
        state = self._newest()
        if state is None:
            self._seed()
            for network in self._training.networks.values():
                distributed.broadcast(network.state_dict().values(), ranks=self._ranks)
            parameters = dict(self._training.networks[self._training.published].named_parameters())
            for average in self._training.averages.values():
                average.restore({name: parameters[name].detach() for name in average.state()})
            coupled.begin_states(self._training, ranks=self._ranks, stop=stop)
            self.files = write_snapshots(self._training, before=-1, now=0, folder=self._folder, ranks=self._ranks)
            return 0
        self._load(state)
        self._images_written = state.images_seen
        _logger.info("%s: resumed at %s images", self._training.name, f"{state.images_seen:,}")
        if self._ranks.leads:
            self._report_passed(state.images_seen)
        return state.images_seen

    def in_force(self) -> Execution:
        """Return the run's execution settings with the precision in which it began, on whatever device that was."""
        return replace(self._training.execution, bfloat16=self._bfloat16)

    def _report_passed(self, images_seen: int) -> None:
        """Report snapshots that the run has passed without making them; ValueError if its last one is among them."""
        run, have = self._training.run, self.files
        passed = [n for n in self._training.snapshots if n <= images_seen and f"snapshots/{n}.safetensors" not in have]
        if not passed:
            return
        fix = f"delete {self._folder} to train from the start"
        if run.images in passed:
            made = ", ".join(name.split("/")[1].split(".")[0] for name in have) or "none"
            found = f"{self._training.name}: images: got {run.images:,}, expected more than the {images_seen:,} that it"
            raise ValueError(f"{found} has seen, or one of its snapshots ({made}). Fix: change images, or {fix}")
        counts = ", ".join(f"{count:,}" for count in passed)
        message = "%s: no snapshots at %s images: the run has passed them. To make them, %s"
        _logger.warning(message, self._training.name, counts, fix)

    def stops(
        self, images_seen: int, *, window: Window, log: RunLog | None, seconds: float, stop: Callable[[], bool]
    ) -> bool:
        """Write a state if `seconds` have passed or a rank is to stop; return whether to stop. All ranks call this.

        Before a stop the state is written; otherwise the ranks continue while rank 0 writes it. A later call raises its
        error.
        """
        self._writer.check()
        # The clock of one rank decides: writing a state is collective.
        is_due = self._ranks.leads and time.monotonic() >= self._written_at + seconds
        request = distributed.highest(_STOP if stop() else _SAVE if is_due else _CONTINUE, ranks=self._ranks)
        # A restored state is not written again, nor is the start.
        if request != _CONTINUE and images_seen > self._images_written:
            settled = Settled(0, "") if log is None else log.settled()
            write = self.save if request == _STOP else self.begin_to_save
            write(images_seen=images_seen, log=settled, window=window)
            self._images_written, self._written_at = images_seen, time.monotonic()
        elif request == _STOP:
            self._writer.join()
            distributed.wait(ranks=self._ranks)
        return request == _STOP

    def finish(self, images_seen: int, *, window: Window, log: RunLog | None) -> None:
        """Write the state of a run's end, from which a longer one continues; all ranks call this."""
        if images_seen > self._images_written:
            self.save(images_seen=images_seen, log=Settled(0, "") if log is None else log.settled(), window=window)
            self._images_written = images_seen

    def save(self, *, images_seen: int, log: Settled, window: Window) -> None:
        """Write a state; every rank must call this at the same step, and returns once it is written."""
        tensors, values = self._content(log=log, window=window)
        self._writer.join()
        if self._ranks.leads:
            write_training_state(self._folder, images_seen=images_seen, tensors=tensors, values=values)
        distributed.wait(ranks=self._ranks)

    def begin_to_save(self, *, images_seen: int, log: Settled, window: Window) -> None:
        """Copy a state and write it in a thread of rank 0, after the one before; all ranks call this at one step."""
        tensors, values = self._content(log=log, window=window)
        self._writer.join()
        if self._ranks.leads:
            copies = self._writer.copied(tensors)
            self._writer.start(
                lambda: write_training_state(
                    self._folder, images_seen=images_seen, tensors=copies.ready(), values=values
                )
            )

    def close(self) -> None:
        """Wait for the state that is being written; that it failed is a warning."""
        self._writer.close()

    def _content(self, *, log: Settled, window: Window) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the tensors and the other values of a state, in rank 0; all ranks must call this."""
        generators, begun = self._generators(), window.state(ranks=self._ranks)
        coupled.check_states(self._training.states, ranks=self._ranks)
        tensors, optimizers = self._tensors()
        if not self._ranks.leads:
            return {}, {}
        numbers = {}
        for name, value in self._training.order.state().items():
            if isinstance(value, int):
                numbers[name] = value
            else:
                tensors[f"order.{name}"] = torch.as_tensor(value.astype("int64"))
        tensors |= {f"coupled.{name}": value for name, value in coupled.tensors_of(self._training.states).items()}
        tensors |= generators | {"window.sums": begun.pop("sums")}
        values = {
            "name": self._training.name,
            "world": self._ranks.world,
            "log_bytes": log.size,
            "log_sha256": log.sha256,
            "files": dict(self.files),
            "history": self.history(),
            "order": numbers,
            "optimizers": optimizers,
            **({"frozen": self._frozen} if self._frozen else {}),
            "controls": self._training.controls.state(),
            "window": begun,
        }
        if self._bfloat16 != self._training.execution.bfloat16:
            values["bfloat16"] = sorted(self._bfloat16)
        return tensors, values

    def _newest(self) -> TrainingState | None:
        """Return the newest valid state whose files are whole; a warning names each that is passed over."""
        below = None
        while True:
            state = read_training_state(self._folder, below=below)
            self._agree(state)
            flaw = self._flaw(state) if state is not None and self._ranks.leads else None
            if flaw is not None:
                _logger.warning("%s: this training state is not used, because %s", state and state.path, flaw)
            if not distributed.highest(flaw is not None, ranks=self._ranks):
                break
            assert state is not None
            below = state.images_seen
        if below is not None and state is None:
            _logger.warning("%s: no older training state; training from the start", self._folder)
        return state

    def _flaw(self, state: TrainingState) -> str | None:
        """Return why the log or a snapshot is not as it was with this state; None if all are, as in `files`."""
        recorded, found = state.values.get("files"), {}
        passed = {"before": 0 if recorded is None else -1, "now": state.images_seen}
        wanted = [*snapshot_files(self._training, **passed), *role_files(self._training, **passed)]
        # A snapshot that was not requested when the run passed it has no record.
        for name in wanted if recorded is None else recorded:
            path = self._folder / name
            if recorded is not None and name not in wanted and not path.is_file():
                continue  # requested once, and removed since
            self._bring(name, recorded=recorded)
            if path.is_dir():
                raise ValueError(f"{path}: got a folder, expected a snapshot. Fix: remove it")
            if not path.is_file():
                return f"{name} is gone"
            found[name] = sha256_of_file(path)
            # A state of an earlier version has no digests.
            if recorded is not None and found[name] != recorded.get(name):
                return f"{name} has changed since it was written (its SHA-256 differs)"
        flaw = flaw_of_log(self._folder / "log.jsonl", _settled(state))
        if flaw is None:
            self.files = found
        return flaw

    def _bring(self, name: str, *, recorded: Mapping[str, str] | None) -> None:
        """Take a snapshot that is gone from the folder from the published ones, where it is whole."""
        if recorded is None or self._published is None or (self._folder / name).exists():
            return
        there = self._published / name
        if there.is_file() and sha256_of_file(there) == recorded[name]:
            link(there, self._folder / name)

    def _agree(self, state: TrainingState | None) -> None:
        """Raise if ranks found different states: they would train different networks."""
        own = torch.tensor([-1 if state is None else state.images_seen])
        found = [int(each) for each in distributed.gather(own, ranks=self._ranks)]
        if len(set(found)) > 1:
            raise ValueError(
                f"{self._folder}: got states of {found} images on the ranks, expected one. "
                "Fix: use a folder that all ranks share"
            )

    def _seed(self) -> None:
        """Seed this rank's global generator, which dropout uses."""
        seed = distributed.rank_seed(self._training.run.seed, world=self._ranks.world, rank=self._ranks.rank)
        torch.manual_seed(seed)

    def _tensors(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {
            f"player.{role}.{name}": value
            for role, network in self._networks.items()
            for name, value in network.state_dict().items()
        }
        for suffix, average in self._training.averages.items():
            tensors |= {f"average{suffix}.{name}": value for name, value in average.state().items()}
        values = {}
        for role, optimizer in self._training.optimizers.items():
            moments, values[role] = optimizer_tensors(optimizer.torch)
            moments = moments if optimizer.shards is None else optimizer.shards.whole_state(moments)
            tensors |= {f"optimizer.{role}.{name}": value for name, value in moments.items()}
        return distributed.whole(tensors, kept=self._ranks.leads), values

    def _generators(self) -> dict[str, Tensor]:
        """Return every rank's global random generators, stacked by rank."""
        states = {"random.cpu": torch.get_rng_state()}
        if self._ranks.device.type == "cuda":
            states["random.cuda"] = torch.cuda.get_rng_state(self._ranks.device)
        return {name: torch.stack(distributed.gather(state, ranks=self._ranks)) for name, state in states.items()}

    def _load(self, state: TrainingState) -> None:
        self._check_frozen(state)
        # Without a record it is that of run.yaml: on a CPU, of an earlier version.
        self._bfloat16 = frozenset(state.values.get("bfloat16", self._training.execution.bfloat16))
        for role, network in self._networks.items():
            distributed.load(network, _under(f"player.{role}.", state.tensors))
        for suffix, average in self._training.averages.items():
            average.restore(_under(f"average{suffix}.", state.tensors))
        for role, optimizer in self._training.optimizers.items():
            moments, values = _under(f"optimizer.{role}.", state.tensors), state.values["optimizers"][role]
            own = moments if optimizer.shards is None else optimizer.shards.own_state(moments)
            load_optimizer(optimizer.torch, own, values)
        arrays = {name: tensor.numpy() for name, tensor in _under("order.", state.tensors).items()}
        self._training.order.restore(state.values["order"] | arrays)
        self._training.controls.restore(state.values.get("controls", {}))
        self._training.states.update(coupled.states_of(_under("coupled.", state.tensors), device=self._ranks.device))
        self.log = _settled(state)
        # States of older versions have no window, because they were written between two of them.
        if "window" in state.values:
            begun = {"sums": state.tensors["window.sums"], **state.values["window"]}
            self.window.restore(begun, ranks=self._ranks)
        history = state.values["history"]
        self._restarts, self._seconds = history["restarts"] + 1, history["seconds"]
        if history["codes"][-1] != self._codes[-1]:
            _logger.warning("%s: resumed with other training code than it started with", self._training.name)
        self._codes = list(dict.fromkeys([*history["codes"], *self._codes]))
        self._load_generators(state)

    def _check_frozen(self, state: TrainingState) -> None:
        """Raise if a frozen network is another one than when the state was written."""
        saved = state.values.get("frozen", {})
        for role in sorted(saved.keys() | self._frozen.keys()):
            if saved.get(role) != self._frozen.get(role):
                raise ValueError(
                    f"{state.path}: got a frozen {role} of SHA-256 {self._frozen.get(role)}, expected "
                    f"{saved.get(role)}. Fix: resume with the file that the run started with"
                )

    def _load_generators(self, state: TrainingState) -> None:
        if state.values["world"] != self._ranks.world:
            _logger.warning(
                "%s: resumed with %d processes after %d; dropout masks and the last digits of the result differ",
                self._training.name,
                self._ranks.world,
                state.values["world"],
            )
            self._seed()
            return
        # Copies: torch crashes on a generator state that is a view into the states of all ranks.
        torch.set_rng_state(state.tensors["random.cpu"][self._ranks.rank].clone())
        if self._ranks.device.type == "cuda" and "random.cuda" in state.tensors:
            torch.cuda.set_rng_state(state.tensors["random.cuda"][self._ranks.rank].clone(), self._ranks.device)

    def history(self) -> dict[str, Any]:
        """Return `restarts`, `seconds` of training in all, and `codes`, the fingerprints of the code that trained."""
        seconds = round(self._seconds + time.monotonic() - self._began, 1)
        return {"restarts": self._restarts, "seconds": seconds, "codes": self._codes}


def _settled(state: TrainingState) -> Settled:
    return Settled(state.values["log_bytes"], state.values.get("log_sha256", ""))


def _digest(network: nn.Module) -> str:
    """Return the SHA-256 of a network's tensors and their names; of one in shards, every rank must call this."""
    digest = hashlib.sha256()
    for name, tensor in distributed.whole(network.state_dict()).items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose name starts with `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
