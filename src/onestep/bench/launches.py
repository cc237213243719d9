"""Launches: the kernels that a training step starts on a GPU, counted without one.

A step runs on torch's device `meta`, which has shapes and no numbers. Each operation that computes counts as one
kernel, the backward of a convolution as one for each of its gradients, an operation on a list of tensors as torch
splits it; a recorded CUDA graph counts as one. Views and operations on the CPU start none. Casts by autocast are not
seen.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from onestep import components
from onestep.bench.option_sets import OptionSet
from onestep.bench.random_run import random_training
from onestep.bench.recording import write_benchmark
from onestep.config.sections import Experiment
from onestep.training.assembly import Training
from onestep.training.execution import Execution
from onestep.training.log import Window
from onestep.training.loop import next_data, update_averages
from onestep.training.nowhere import NOWHERE
from onestep.training.optimizers import RoleOptimizer
from onestep.training.sources import ImageShape
from onestep.training.step import set_training_mode, train_step

REST = "rest"
# Of torch's multi_tensor_apply: tensors of a launch by the number of lists, blocks of a launch, numbers of a block.
_TENSORS, _BLOCKS, _CHUNK = {1: 110, 2: 64, 3: 48, 4: 36, 5: 30}, 320, 65536
_CAT = 128  # tensors that one kernel joins
_ADAM_LISTS = 4  # parameters, gradients, both moments
_FREE = ("empty", "new_empty", "detach", "alias", "lift_fresh", "sym_", "_reshape_alias", "_unsafe_view", "set_")


def count_launches(
    experiment: Experiment, run: str, *, options: OptionSet, shape: ImageShape, batch: int
) -> dict[str, int]:
    """Return the launches of each phase, and those of batch, averages and records under `rest`.

    ValueError: The networks are compiled without CUDA graphs; its kernels are chosen by the compiler.
    """
    if options.compile.get("networks") and not options.compile.get("cuda_graphs"):
        raise ValueError("compile.networks: got true without graphs, whose kernels the compiler chooses")
    training = _training(experiment, run, options=options, shape=shape, batch=batch)
    counter = LaunchCounter()
    # Torch makes no fused optimizers for the device `meta`.
    for optimizer in training.optimizers.values() if options.compile.get("fused_optimizer") else ():
        vars(optimizer.torch)["step"] = _counted_step(optimizer, counter)
    wrapped = training.execution.wrapped(
        training.networks,
        families=training.families,
        averages=training.followers.keys(),
        compiler=counter.recorded if options.compile.get("cuda_graphs") else lambda function: function,
    )
    ranks, window = NOWHERE, Window()
    found: dict[str, int] = {}
    with counter:
        data = next_data(training, images_seen=0, ranks=ranks)
        for phase in training.phases:
            found[REST] = found.get(REST, 0) + counter.taken()
            reports = train_step(
                (phase,),
                networks=training.networks,
                wrapped=wrapped,
                optimizers=training.optimizers,
                data=data,
                ranks=ranks,
            )
            found[phase.name] = counter.taken()
            window.add(reports)
        update_averages(training, images_seen=0)
    return found | {REST: found.get(REST, 0) + counter.taken()}


def _training(experiment: Experiment, run: str, *, options: OptionSet, shape: ImageShape, batch: int) -> Training:
    """Build a run on the device `meta`, with an option set that this device would refuse, after its first steps."""
    plain = replace(options, precision={}, compile={k: v for k, v in options.compile.items() if k == "channels_last"})
    training = random_training(experiment, run, options=plain, shape=shape, batch=batch, ranks=NOWHERE)
    if any(phase.coupled is not None for phase in training.phases):
        raise ValueError(f"runs.{run}: got a loss of all images of a step, expected another. Fix: count another run")
    # Discriminators have the same kernels in bfloat16, but for casts; their half precision is torch's autocast.
    half = frozenset({"networks"} if options.precision.get("generator") == "bfloat16" else ())
    set_training_mode(training.networks, phases=training.phases)
    for optimizer in training.optimizers.values():  # a first step makes the moments
        for parameter in optimizer.parameters:
            parameter.grad = torch.zeros_like(parameter)
        optimizer.torch.step()
    return replace(training, execution=Execution(bfloat16=half, **options.compile))


def _counted_step(optimizer: RoleOptimizer, counter: LaunchCounter) -> Callable[[], None]:
    def step() -> None:
        with torch.no_grad():
            lists = [optimizer.parameters] * _ADAM_LISTS
            counter.count += launches_of_lists(lists) + launches_of_lists([optimizer.parameters[:1]])

    return step


class LaunchCounter(TorchDispatchMode):
    """Counts the launches of what runs inside of it.

    Attributes:
        count: Launches so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self._inside = 0  # nested calls of recorded functions
        # Of each recorded call with a backward: the numbers of its first node and of the one after its last.
        self._graphs: list[tuple[int, int]] = []
        self._replayed: set[int] = set()

    def taken(self) -> int:
        """Return the launches since the last call."""
        count, self.count = self.count, 0
        return count

    def recorded(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that counts as one launch, and its backward as another."""

        def call(*arguments: Any, **options: Any) -> Any:
            self.count += 1
            self._inside += 1
            begin = torch._C._autograd._get_sequence_nr()
            try:
                return function(*arguments, **options)
            finally:
                self._inside -= 1
                self._graphs.append((begin, torch._C._autograd._get_sequence_nr()))

        return call

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count its kernels."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if not self._inside and not self._in_a_graph():
            self.count += launches_of(func, args, kwargs, result)
        return result

    def _in_a_graph(self) -> bool:
        """Whether this is part of the backward of a recorded call, which counts once."""
        node = torch._C._current_autograd_node()
        if node is None:
            return False
        number = node._sequence_nr()
        place = bisect.bisect_right(self._graphs, (number, float("inf"))) - 1
        if place < 0 or not self._graphs[place][0] <= number < self._graphs[place][1]:
            return False
        if place not in self._replayed:
            self._replayed.add(place)
            self.count += 1
        return True


def launches_of(func: Any, args: Any, kwargs: Mapping[str, Any], result: Any) -> int:
    """Return the kernels of one operation of torch on the device `meta`."""
    name = func.name().removeprefix("aten::")
    lists = [each for each in args if isinstance(each, (list, tuple)) and each and isinstance(each[0], Tensor)]
    if not any(isinstance(each, Tensor) and each.is_meta for each in tree_leaves((args, kwargs, result))):
        return 0
    if func.is_view or name.startswith(_FREE):
        return 0
    if name.startswith("_foreach_"):
        made = [result] if isinstance(result, (list, tuple)) and result and isinstance(result[0], Tensor) else []
        on_device = [each for each in (*lists, *made) if each[0].is_meta]
        return launches_of_lists(on_device) if on_device else 0
    if name.startswith(("cat", "stack")):
        return -(-len(lists[0]) // _CAT)
    if name.startswith("convolution_backward"):
        return sum(map(bool, args[-1]))
    return 1


def launches_of_lists(lists: Sequence[Sequence[Tensor]]) -> int:
    """Return the kernels of one operation on lists of tensors; one for each where their layouts in memory differ."""
    for tensors in zip(*lists, strict=True):
        if len({(each.dtype, each.shape, each.stride()) for each in tensors}) > 1:
            return len(lists[0])
    most = _TENSORS[min(len(lists), max(_TENSORS))]
    launches = tensors_here = blocks = 0
    for tensor in lists[0]:
        chunks = -(-tensor.numel() // _CHUNK)
        tensors_here += bool(chunks)
        for chunk in range(chunks):
            blocks += 1
            is_last = chunk == chunks - 1
            if blocks == _BLOCKS or (tensors_here == most and is_last):
                launches, blocks, tensors_here = launches + 1, 0, int(not is_last)
    return launches + bool(blocks)


def write_launches_record(folder: Path, found: Mapping[str, Any], *, took: Mapping[str, Any]) -> Path:
    """Write the counts of `bench_launches` as a record and return its path."""
    numbers: dict[str, float | str | None] = {"batch": found["batch"]}
    for each in found["sets"]:
        numbers |= {f"{each['name']}.{phase}": count for phase, count in each["launches"].items()}
        numbers |= {f"{each['name']}.step": each["step"], f"{each['name']}.ratio": each["ratio"]}
    numbers |= {f"{each['name']}.left_out": each["reason"] for each in found["left_out"]}
    return write_benchmark(
        folder,
        name=f"bench_launches_{found['run']}".lower().replace("-", "_"),
        about=f"Kernels that a step of {found['run']} starts on a GPU, counted without one, batch {found['batch']}.",
        took=took,
        numbers=numbers,
    )


def report_lines(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield the findings of the verb as Markdown."""
    shape = found["shape"]
    yield (
        f"{found['run']}: kernels that a step starts, counted on shapes alone, not measured; batch {found['batch']} "
        f"of {shape['channels']}x{shape['resolution']}x{shape['resolution']}, torch {found['torch']}. A CUDA graph "
        "counts as one."
    )
    yield ""
    phases = list(found["sets"][0]["launches"]) if found["sets"] else []
    if phases:
        columns = ["set", *phases, "average step", "ratio"]
        yield f"| {' | '.join(columns)} |"
        yield f"| --- |{' ---: |' * (len(columns) - 1)}"
    for each in found["sets"]:
        cells = [f"{each['launches'][phase]:,}" for phase in phases]
        cells += [f"{each['step']:,.0f}", f"{each['ratio']:.2f}"]
        yield f"| {' | '.join([each['name'], *cells])} |"
    for each in found["left_out"]:
        yield f"Left out: {each['name']}: {each['reason']}."


def bench_launches(
    experiment: Experiment, run: str, *, sets: Sequence[OptionSet], shape: ImageShape, batch: int
) -> dict[str, Any]:
    """Count the launches of a run under each option set; return the input of `report_lines`, as JSON values."""
    counted: list[dict[str, Any]] = []
    left_out: list[dict[str, str]] = []
    objective = components.build("objectives", experiment.runs[run].objective)
    every = {phase.name: phase.every for phase in objective.phases()}
    for options in sets:
        try:
            launches = count_launches(experiment, run, options=options, shape=shape, batch=batch)
        except ValueError as error:
            left_out.append({"name": options.name, "reason": str(error)})
            continue
        step = sum(count / every.get(name, 1) for name, count in launches.items())
        first = counted[0]["step"] if counted else step
        counted.append({"name": options.name, "launches": launches, "step": step, "ratio": step / first})
    return {
        "run": run,
        "shape": shape._asdict(),
        "batch": batch,
        "torch": torch.__version__,
        "sets": counted,
        "left_out": left_out,
    }
