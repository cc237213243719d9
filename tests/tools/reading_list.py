"""Lists the files that explain one training step of an objective, from the run's block to `optimizer.step()`.

Usage: python -m tests.tools.reading_list d2o

It starts at the objective's file and at training's loop and assembly, and follows the imports inside the package. Exit
code 1 if there are more than 12 files or 1,500 lines.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

SOURCE = Path(__file__).parents[2] / "src"
MOST_FILES, MOST_LINES = 12, 1500

# Why a file is not followed; the longest matching name counts. None: it is.
_LEFT_OUT: dict[str, str | None] = {
    "onestep.config": "reads and checks config.yaml and run.yaml",
    "onestep.config.run": None,
    "onestep.data": "reads the dataset, in the order of its shuffle",
    "onestep.checkpoints": "reads and writes files",
    "onestep.training.log": "writes log.jsonl, snapshots and the progress line",
    "onestep.training.resume": "writes and reads states",
    "onestep.training.publication": "publishes snapshots and the files of a finished run",
    "onestep.run_record": "reads and writes the record of a run's folder",
    "onestep.training.sources": "reads the input files of networks and calls the builders of their families",
    "onestep.training.stopping": "signal handlers",
    "onestep.training.averages": "builds one EMA of training/ema.py for each entry of the run's `ema:`",
    "onestep.training.streams": "random numbers: one stream for each image of the run",
    "onestep.training.ahead": "reads a step's images and draws its random numbers, on CUDA before the step",
    "onestep.training.recompute": "computes activations again to save memory, off by default; the same numbers",
    "onestep.training.placement": "moves networks to the device, with the options that save memory",
    "onestep.training.sharding": "gives each process a part of the weights, off by default",
    "onestep.training.frozen": "stores frozen weights in bfloat16, off by default",
    "onestep.training.coupled": "phases whose loss couples all images of a step; D2O has none",
    "onestep.controls": "parameters that follow observations, such as ADA's; D2O has none",
    "onestep.coupling": "losses that couple all images of a step; D2O has none",
    "onestep.training.adaptive": "parameters that follow observations, such as ADA's; D2O has none",
    "onestep.networks": "internals of denoisers; the contract is forward(x, sigma, condition)",
    "onestep.discriminators": "internals of discriminators; objectives/d2o.py states the part of the contract it uses",
    "onestep.chain": "evaluations of a multi-step generator; D2O's is one",
    "onestep.arithmetic": "sets TF32 and deterministic algorithms for a block",
    "onestep.augmentations": "internals of augmentations, off by default",
    "onestep.autoencoders": "pixels to images: the identity by default",
    "onestep.distributed": "one-line collectives over torch.distributed",
    "onestep.components": "from a name in a config to its class",
    "onestep.models": "names of files",
    "onestep.results": "names of files",
}

# Dataclasses of config/run.py that are not part of the block of a run with a teacher, and its reading and writing.
_NOT_IN_THE_BLOCK = ("NetworkBlock", "CodecBlock", "ResolvedRun")


class Part(NamedTuple):
    """A file to read, and its number of lines."""

    path: Path
    lines: int
    reason: str


def reading_list(objective: str) -> tuple[list[Part], dict[str, str]]:
    """Return the files that explain a step of an objective, and the modules left out, with reasons."""
    waiting = {
        f"onestep.objectives.{objective}": "the objective",
        "onestep.training.assembly": "from the run's block to networks and optimizers",
        "onestep.training.loop": "from a batch to the step",
    }
    parts: dict[str, Part] = {}
    left_out: dict[str, str] = {}
    while waiting:
        name, reason = waiting.popitem()
        parts[name] = Part(_file(name), _lines(name), reason)
        for imported in _imports(name):
            if (why_not := _left_out(imported)) is not None:
                left_out[imported] = why_not
            elif imported not in parts:
                waiting[imported] = f"imported by {name.removeprefix('onestep.')}"
    return sorted(parts.values(), key=lambda part: part.path), left_out


def _left_out(name: str) -> str | None:
    names = [each for each in _LEFT_OUT if name == each or name.startswith(f"{each}.")]
    return _LEFT_OUT[max(names, key=len)] if names else None


def _file(name: str) -> Path:
    path = SOURCE.joinpath(*name.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _imports(name: str) -> Iterator[str]:
    """Yield the modules of the package that a module imports, also under TYPE_CHECKING and inside functions."""
    if name == "onestep.config.run":
        return
    for node in ast.walk(ast.parse(_file(name).read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "onestep":
            for each in node.names:
                inner = f"{node.module}.{each.name}"
                yield inner if _file(inner).exists() else node.module
        elif isinstance(node, ast.Import):
            yield from (each.name for each in node.names if each.name.split(".")[0] == "onestep")


def _lines(name: str) -> int:
    text = _file(name).read_text()
    if name != "onestep.config.run":
        return len(text.splitlines())
    # Of this file only the dataclasses of a run's block count; the rest reads and writes run.yaml.
    classes = [node for node in ast.parse(text).body if isinstance(node, ast.ClassDef)]
    return sum(
        (node.end_lineno or 0) - min([node.lineno, *(each.lineno for each in node.decorator_list)]) + 1
        for node in classes
        if node.name not in _NOT_IN_THE_BLOCK
    )


def main(objective: str) -> int:
    """Print the list; return the exit code."""
    parts, left_out = reading_list(objective)
    for part in parts:
        print(f"{part.lines:5}  {part.path.relative_to(SOURCE.parent)}  ({part.reason})")
    total = sum(part.lines for part in parts)
    print(f"{total:5}  lines in {len(parts)} files (at most {MOST_LINES:,} in {MOST_FILES})")
    print("\nLeft out:")
    for name, reason in sorted(left_out.items()):
        print(f"  {name}: {reason}")
    return int(len(parts) > MOST_FILES or total > MOST_LINES)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1]))
