"""One rank of the test of ranks: trains some steps, compares parameters over ranks, writes what it saw.

Usage: python ranks_worker.py RUN_YAML FOLDER STEPS OUTPUT, with RANK and WORLD_SIZE in the environment.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import torch
import yaml
from torch import nn

from onestep import distributed
from onestep.training.assembly import assemble
from onestep.training.log import Window
from onestep.training.loop import _step
from onestep.training.resume import Resume
from onestep.training.step import modules_in_training_mode


def digest(players):
    """Return the hash of all parameters of all players, as a tensor that can be gathered."""
    found = hashlib.sha256()
    for player in players.values():
        for parameter in player.parameters():
            found.update(parameter.detach().numpy().tobytes())
    return torch.frombuffer(bytearray(found.digest()), dtype=torch.uint8)


def main(document, folder, steps, output):
    """Train and report."""
    run = yaml.safe_load(document.read_text())
    teacher = folder / "teacher.safetensors" if run.get("teacher") else None
    backbones = {"digits": folder / "backbone.safetensors"}
    torch.set_num_threads(1)
    with distributed.joined() as ranks:
        training = assemble(run, data=folder / "digits.zip", teacher=teacher, backbones=backbones, ranks=ranks)
        Resume(training, folder=output.parent / "state", ranks=ranks, code="").restore()
        modules_in_training_mode(training.players)
        # The heads' batch norm is local to a rank, as in the reference; held still, ranks compute the same.
        for player in training.players.values():
            for part in player.modules():
                if isinstance(part, nn.BatchNorm2d):
                    part.eval()
        losses = []
        for step in range(steps):
            window = Window()
            window.add(_step(training, images_seen=step * training.batch, ranks=ranks))
            losses.append(window.means(ranks=ranks)["losses"])
        digests = distributed.gather(digest(training.players), ranks=ranks)
        if ranks.leads:
            equal = all(torch.equal(digests[0], other) for other in digests)
            output.write_text(json.dumps({"losses": losses, "equal": equal, "ranks": len(digests)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
