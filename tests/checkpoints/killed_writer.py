"""Write training states in children that are killed at random moments; check after each what is left.

Usage: killed_writer.py FOLDER KILLS SEED. A program of its own, because it forks. Prints one line of JSON for each
kill: the images of the last state whose writing had ended, those of the state that is then read, whether the numbers
in it are its own, and the folder's contents.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from onestep.checkpoints.training_state import read_training_state, write_training_state

BATCH = 1000


def write_on(folder: Path, done: Path) -> None:
    """Resume, then write one state after the other until killed, each with its own number everywhere."""
    state = read_training_state(folder)
    images_seen = 0 if state is None else state.images_seen
    while True:
        images_seen += BATCH
        tensors = {f"layer{index}": torch.full((100_000,), images_seen, dtype=torch.int32) for index in range(4)}
        write_training_state(folder, images_seen=images_seen, tensors=tensors, values={"images": images_seen})
        done.write_text(str(images_seen))


def text_of(done: Path) -> str:
    """Return the images of the last state whose writing had ended; empty for none, or if its record was cut."""
    return done.read_text() if done.exists() else ""


def killed_once(folder: Path, done: Path, *, share: float) -> dict[str, object]:
    """Let a child write one state and a `share` of the time it took longer, kill it, and look at what it left."""
    before = text_of(done)
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        write_on(folder, done)
    while text_of(done) in ("", before):
        time.sleep(0.001)
    time.sleep(share * (time.monotonic() - start))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    state = read_training_state(folder)
    own = state is not None and state.values == {"images": state.images_seen}
    own = own and all(bool((tensor == state.images_seen).all()) for tensor in state.tensors.values())
    left = sorted(path.name for path in folder.iterdir())
    return {"done": int(text_of(done) or 0), "read": state.images_seen if state else 0, "own": own, "left": left}


if __name__ == "__main__":
    chance = random.Random(int(sys.argv[3]))
    root = Path(sys.argv[1])
    for _ in range(int(sys.argv[2])):
        print(json.dumps(killed_once(root / "states", root / "done", share=chance.uniform(0.0, 2.0))))
