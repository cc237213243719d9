"""What a network is called below results/: `{run}@{images}`, `{run}@best-...`, or a teacher's name.

A chosen snapshot's name holds all that the choice depends on, so two tables that choose differently never share a file:
`{run}@best-{metric}.{value}-{sampler}-{seeds}`. Either ends in `-ema{half_life}` where it is of another average than
the run's main one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_NAME = "[a-z0-9_]+"
# No named groups: the workflow puts the pattern into its own, which has names.
MODEL = rf"({_NAME})(?:@(?:([0-9]+)|best-({_NAME})\.({_NAME})-({_NAME})-([0-9]+-[0-9]+))(?:-ema([0-9]+))?)?"
"""What every model's name matches."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """By which number a snapshot is chosen.

    Attributes:
        metric, value: The number `{metric}.{value}`.
        sampler: What draws the images that it is measured on.
        seeds: Their block of seeds, "first-last".
    """

    metric: str
    value: str
    sampler: str
    seeds: str


@dataclass(frozen=True, kw_only=True)
class Model:
    """A network by name.

    Attributes:
        name: The run or the teacher.
        images: Which snapshot of the run, as a count of images.
        choice: How the snapshot is chosen, in place of `images`; a teacher has neither.
        ema: Half-life in images of the average; None for the run's main one.
    """

    name: str
    images: int | None = None
    choice: Choice | None = None
    ema: int | None = None

    @classmethod
    def parse(cls, text: str) -> Model:
        """Read a name back.

        Raises:
            ValueError: It is no model's name.
        """
        found = re.fullmatch(MODEL, text)
        if found is None:
            raise ValueError(f"{text!r} names no model; expected run@images, run@best-... or a teacher")
        name, images, metric, value, sampler, seeds, ema = found.groups()
        return cls(
            name=name,
            images=None if images is None else int(images),
            choice=None if metric is None else Choice(metric=metric, value=value, sampler=sampler, seeds=seeds),
            ema=None if ema is None else int(ema),
        )

    def __str__(self) -> str:
        suffix = average_suffix(self.ema)
        if self.choice is not None:
            by = self.choice
            return f"{self.name}@best-{by.metric}.{by.value}-{by.sampler}-{by.seeds}{suffix}"
        return self.name if self.images is None else f"{self.name}@{self.images}{suffix}"

    @property
    def weights(self) -> str:
        """Its file below results/."""
        if self.choice is not None:
            return f"selections/{self}.safetensors"
        if self.images is not None:
            return f"runs/{self.name}/snapshots/{self.images}{average_suffix(self.ema)}.safetensors"
        return f"teachers/{self.name}.safetensors"


def average_suffix(half_life: int | None) -> str:
    """Return what names of another average than the main one end in: "-ema100000"; empty for None."""
    return "" if half_life is None else f"-ema{half_life}"
