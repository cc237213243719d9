"""One rank of the tests of ranks: trains some steps of some runs, compares parameters over ranks, writes what it saw.

Usage: python ranks_worker.py TASKS_JSON FOLDER OUTPUT, with RANK and WORLD_SIZE in the environment. A task is
{"run": a run's document, "steps": how many, "batch_norm": "held" or "training"}.
Rank 0 also writes the gradients of the last step, and the states of coupled losses.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from onestep import distributed
from onestep.config.run import run_of
from onestep.training.assignment import Inputs
from onestep.training.coupled import tensors_of
from onestep.training.log import Window
from onestep.training.loop import take_step
from onestep.training.resume import Resume
from onestep.training.run import assemble
from onestep.training.step import set_training_mode


def parameters(training):
    """Return all parameters of all networks by role and name, those in shards as whole ones."""
    networks = training.networks.items()
    found = {f"{role}.{name}": p.detach() for role, network in networks for name, p in network.named_parameters()}
    return {name: each.cpu() for name, each in distributed.whole(found).items()}


def digest(training):
    """Return the hash of all parameters and of the steered numbers, as a tensor that can be gathered."""
    found = hashlib.sha256(json.dumps(training.controls.state()).encode())
    for parameter in (*parameters(training).values(), *tensors_of(training.states).values()):
        found.update(parameter.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return torch.frombuffer(bytearray(found.digest()), dtype=torch.uint8)


def projection(training):
    """Return the hash of what is random and fixed in the discriminator, if there is one."""
    found, discriminator = hashlib.sha256(), training.networks.get("discriminator")
    fixed = getattr(discriminator, "scratch", None)
    for buffer in () if fixed is None else fixed.buffers():
        found.update(buffer.cpu().numpy().tobytes())
    return torch.frombuffer(bytearray(found.digest()), dtype=torch.uint8)


def carry_out(task, *, folder, output, ranks):
    """Train the run of one task, and return what came of it; rank 0 writes the parameters before and after."""
    run = task["run"]
    files = Inputs(
        run=folder / "run.yaml",
        data=folder / "digits.zip",
        teacher=folder / "teacher.safetensors" if run.get("teacher") else None,
        backbones={"digits": folder / "backbone.safetensors"},
        codec=folder / "codec.safetensors" if run.get("codec") else None,
    )
    training = assemble(run_of(run), files=files, ranks=ranks)
    Resume(training, folder=output.parent / "state", ranks=ranks, code="").restore()
    set_training_mode(training.networks, phases=training.phases)
    if task["batch_norm"] == "held":
        # The heads' batch norm is local to a rank, as in the reference; held still, ranks compute the same.
        for network in training.networks.values():
            for part in network.modules():
                if isinstance(part, nn.BatchNorm2d):
                    part.eval()
    before = {name: p.clone() for name, p in parameters(training).items()}
    losses, controls = [], []
    for step in range(task["steps"]):
        window = Window()
        window.add(take_step(training, images_seen=step * training.run.batch, ranks=ranks))
        losses.append(window.means(ranks=ranks)["losses"])
        controls.append(dict(training.controls.values()))
    after = parameters(training)
    if ranks.leads:
        save_file({name: p - before[name] for name, p in after.items()}, output)
        networks = training.networks.items()
        found = {f"{r}.{name}": p.grad for r, each in networks for name, p in each.named_parameters()}
        gradients = {name: grad.contiguous() for name, grad in found.items() if grad is not None}
        save_file({**gradients, **tensors_of(training.states)}, output.with_name(f"{output.stem}-last.safetensors"))
    ends, projections = (distributed.gather(f(training), ranks=ranks) for f in (digest, projection))
    return {
        "losses": losses,
        "controls": controls,
        "equal": all(torch.equal(ends[0], other) for other in ends),
        "projections": len({tuple(each.tolist()) for each in projections}),
        "ranks": len(ends),
    }


def main(tasks, folder, output):
    """Carry out the tasks one after the other; write reports to `output`, updates to NUMBER.safetensors beside it."""
    torch.set_num_threads(1)
    with distributed.joined() as ranks:
        reports = [
            carry_out(task, folder=folder, output=output.with_name(f"{number}.safetensors"), ranks=ranks)
            for number, task in enumerate(json.loads(tasks.read_text()))
        ]
        if ranks.leads:
            output.write_text(json.dumps(reports))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
