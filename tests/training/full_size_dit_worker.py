"""A training step of SiT-XL/2 with random weights on random latents, in a process of its own for its peak of memory.

Usage: python full_size_dit_worker.py OUTPUT [RUN]; with a run, of studies/latents_full.yaml and two images.
"""

from __future__ import annotations

import hashlib
import json
import resource
import sys
import time
from pathlib import Path

import torch
import yaml

from onestep.bench.option_sets import option_set
from onestep.bench.random_run import random_training, shape_of
from onestep.config import parse_experiment, read_experiment
from onestep.distributed import Ranks
from onestep.networks import published_architecture
from onestep.training.loop import take_step
from onestep.training.sources import ImageShape
from onestep.training.step import set_training_mode
from tiny import REPOSITORY, tiny_config

TEACHER = "sit_xl_2_256x256"
# Heads on the tokens after three quarters of the blocks; a penalty at each step.
_RUN = {
    "teacher": TEACHER,
    "conditional": True,
    "preconditioning": "flow",
    "freeze": ["F2"],
    "discriminator": {"name": "teacher_features", "levels": [1]},
    "recompute": True,
    "batch": 1,
}
MOVED = (
    "model.x_embedder.proj.weight",
    "model.blocks.0.adaLN_modulation.1.weight",
    "model.blocks.27.adaLN_modulation.1.bias",
)
"""Of the trained tensors, some from the first to the last block."""


def experiment():
    """Return the tiny config with a run from SiT-XL/2."""
    config = tiny_config()
    config["inputs"][TEACHER] = {"file": "SiT-XL-2-256.pt"}
    config["teachers"][TEACHER] = {"weights": TEACHER, "preconditioning": "flow"}
    run = config["runs"]["digits_d2o"]
    config["runs"]["latents"] = {**run, **_RUN, "objective": run["objective"] | {"r1_every": 1, "sigma": 80.0}}
    return parse_experiment(config)


def digest(tensor):
    """Return the hash of a tensor's bytes."""
    return hashlib.sha256(tensor.detach().numpy().tobytes()).hexdigest()


def peak_mib():
    """Return the largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def heads_on_tokens(ranks):
    """Return the training of one image with heads on the teacher's tokens."""
    config = published_architecture(TEACHER.replace("_", "-"))
    shape = ImageShape(
        resolution=config["img_resolution"], channels=config["img_channels"], classes=config["label_dim"]
    )
    return random_training(experiment(), "latents", options=option_set("reference"), shape=shape, batch=1, ranks=ranks)


def recipe(run, ranks, *, folder):
    """Return the training of two images of a run of studies/latents_full.yaml, with a penalty at each step."""
    changed = {"extends": str(REPOSITORY / "studies/latents_full.yaml"), "runs": {run: {"objective": {"r1_every": 1}}}}
    (folder / "config.yaml").write_text(yaml.safe_dump(changed))
    full = read_experiment(folder / "config.yaml")
    return random_training(
        full, run, options=option_set("reference"), shape=shape_of(full, run, given={}), batch=2, ranks=ranks
    )


def report(run=None, *, folder):
    """Take the step and return what came of it."""
    ranks = Ranks(rank=0, world=1, device=torch.device("cpu"))
    torch.manual_seed(0)
    began = time.monotonic()
    training = heads_on_tokens(ranks) if run is None else recipe(run, ranks, folder=folder)
    generator = training.networks["generator"]
    teacher = getattr(training.networks["discriminator"], "teacher", torch.nn.Identity())
    with torch.no_grad():  # of the layers that begin as zeros, so that all are in use
        for name, parameter in (*generator.named_parameters(), *teacher.named_parameters()):
            if "adaLN_modulation" in name or "final_layer" in name:
                parameter.add_(torch.randn_like(parameter), alpha=0.02)
    built, peak_of_build = time.monotonic() - began, peak_mib()
    frozen = {name: digest(p) for name, p in generator.named_parameters() if not p.requires_grad}
    before = {name: p.detach().clone() for name, p in generator.named_parameters() if name in MOVED}
    set_training_mode(training.networks, phases=training.phases)
    began = time.monotonic()
    losses = {each.name: float(each.loss) for each in take_step(training, images_seen=0, ranks=ranks)}
    return {
        "losses": losses,
        "seconds": time.monotonic() - began,
        "built_seconds": built,
        "peak_mib": peak_mib(),
        "peak_of_build_mib": peak_of_build,
        "parameters": sum(p.numel() for p in generator.parameters()),
        "frozen": sum(p.numel() for name, p in generator.named_parameters() if name in frozen),
        "positions": generator.model.pos_embed.numel(),
        "frozen_changed": [name for name in frozen if digest(generator.get_parameter(name)) != frozen[name]],
        "moved": {name: float((generator.get_parameter(name) != p).double().mean()) for name, p in before.items()},
        "finite": all(bool(torch.isfinite(p).all()) for p in generator.parameters()),
    }


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(report(*sys.argv[2:], folder=Path(sys.argv[1]).parent)))
