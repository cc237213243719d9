"""What a run starts from and learns from beside its dataset: initial weights, and pairs of noise and images."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

from onestep.config.constraints import Constraint, Name, RunName, SeedBlock, Text

if TYPE_CHECKING:
    from onestep.config.run import Run
    from onestep.config.sections import Experiment

TEACHER, FRESH = "teacher", "none"
"""The values of `from` that are no names."""


@dataclass(frozen=True, kw_only=True)
class Initialisation:
    """The weights that the generator starts from, in the architecture that the run has anyway.

    The teacher stays what it is for all other networks. Whatever is random follows from the run's seed, and is the same
    in all processes. The EMA starts from the same weights.
    """

    # `teacher`: those of the run's teacher; `none`: fresh ones, as in a training from scratch; or an entry of
    # `teachers`; or a run of a denoiser, its last snapshot, of a family the member with the training seed of this run.
    source: RunName = field(default=TEACHER, metadata={"alias": "from"})
    # Patterns of whole parameter names, as those of `freeze`, whose tensors keep fresh weights.
    redraw: tuple[Text, ...] = ()
    # Permute the entries within each tensor of parameters: what is left is the distribution of the weights.
    shuffle: bool = False

    @property
    def is_named(self) -> bool:
        """Whether the weights are those of an entry of `teachers` or of a run."""
        return self.source not in (TEACHER, FRESH)


@dataclass(frozen=True, kw_only=True)
class PairsBlock:
    """Pairs of a sampler's noise and of the image that a teacher makes of it, the pipeline's own samples.

    The noise of a pair is drawn again from its seed, so it is the very noise of the sampler.
    """

    teacher: Name | None = None  # entry of `teachers` that makes the images; by default that of the run
    sampler: Name  # a deterministic one, whose images follow from noise and class
    seeds: Annotated[tuple[SeedBlock, ...], Constraint(min_length=1)]  # blocks of seeds, one pair for each seed


def pairs_teacher(run: Run) -> str | None:
    """Return the entry of `teachers` that makes the images of a run's pairs; None without pairs, or without one."""
    return None if run.pairs is None else run.pairs.teacher or run.teacher


def started_from(run: Run, experiment: Experiment) -> list[tuple[str, str]]:
    """Return (what, run) of the runs whose weights or images a run starts from by `init` and `pairs`."""
    named = [("the teacher of its pairs", pairs_teacher(run))]
    if run.init is not None and run.init.is_named:
        named.append(("its initial weights", run.init.source))
    teachers = experiment.teachers
    sources = [(what, teachers[name].run if name in teachers else name) for what, name in named if name is not None]
    return [(what, name) for what, name in sources if name is not None and name in experiment.runs]
