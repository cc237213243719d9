"""The verb `train`."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def train(
    *,
    run: Path,
    data: Path,
    teacher: Path | None = None,
    backbone: Mapping[str, Path] | None = None,
    class_embeddings: Path | None = None,
    init: Path | None = None,
    codec: Path | None = None,
    pairs: Sequence[Path] = (),
    state: Path,
    output: Path,
    code_in_spec: bool = False,
    micro_batch: int | None = None,
    rows_per_pass: int | None = None,
    cache: Path | None = None,
    processes: int = 1,
    state_seconds: float = 300.0,
    discard_state: bool = False,
    watch: Mapping[str, Any] | None = None,
) -> int:
    """Train a run and publish it; resume it from its newest state, and only publish it if it is finished.

    A run whose `images` was raised continues from its state. Snapshots are published as soon as they are written.

    The exit code is 85 if a signal stopped the training and its state is saved; 130 after Ctrl-C.

    Args:
        run: Resolved configuration of the run (run.yaml).
        data: Dataset archive (.zip).
        teacher: Weights of the teacher.
        backbone: Weights of the discriminator's backbones by name.
        class_embeddings: Initial class embeddings of the discriminator.
        init: Weights that the run's `init` names; not the verb `init`, which writes a config.
        codec: Network of the run's codec, as `onestep convert` writes it.
        pairs: Images of the run's `pairs`, one file for each block of seeds, in its order.
        state: Folder of training states; the run uses `{state}/{run}/{run hash}/`.
        output: Folder of published runs.
        code_in_spec: Include the code fingerprint in the run hash: changed code trains again.
        micro_batch: The run's `micro_batch`, for this start only and not part of the run hash; without it the run's.
        rows_per_pass: Former name of `micro_batch`.
        cache: Folder of decoded images that exceed the memory; without it `{state}/.cache`.
        processes: Processes on this machine, one per GPU.
        state_seconds: Seconds between two states.
        discard_state: Remove the final state of a finished run, which then cannot continue to more images.
        watch: Numbers to measure of each snapshot, and a project of Weights & Biases, as `onestep launch` makes them of
            section `watch` (JSON). Curves and sample grids are always written.
    """
    options = dict(locals())
    if processes > 1:
        from onestep.launch.local import command_line, run_locally

        return run_locally(command_line("train", options), processes=processes)
    from onestep import gpus
    from onestep.exits import Exit
    from onestep.training.stopping import listening

    # Before the import of torch, which takes a while: until then a signal would end the process.
    with listening() as stop, gpus.own(stop=stop.asked) as has_gpu:
        if not has_gpu:
            return Exit.CANCELLED if stop.by_ctrl_c else Exit.STOPPED
        from onestep.config.run import load_run
        from onestep.fingerprint import Fingerprints
        from onestep.training.assignment import Assignment, Inputs
        from onestep.training.run import carry_out
        from onestep.watching import Watcher

        inputs = Inputs(
            run=run,
            data=data,
            teacher=teacher,
            backbones=backbone or {},
            class_embeddings=class_embeddings,
            init=init,
            codec=codec,
            pairs=tuple(pairs),
        )
        assignment = Assignment(
            inputs=inputs,
            state=state,
            code_in_spec=code_in_spec,
            state_seconds=state_seconds,
            micro_batch=rows_per_pass if micro_batch is None else micro_batch,
            cache=cache,
            keep_state=not discard_state,
        )
        document = assignment.document()
        load_run(run)  # refuses a file that lacks keys
        code = Fingerprints().of_training(document)
        folder = assignment.folder(code)
        target = output / document["run"]
        watcher = functools.partial(Watcher, order=watch or {}, target=target, stop=stop.asked)
        finished = carry_out(assignment, folder=folder, code=code, output=output, stop=stop.asked, watch=watcher)
    if finished:
        return Exit.FINISHED
    return Exit.CANCELLED if stop.by_ctrl_c else Exit.STOPPED
