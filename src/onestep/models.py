"""Names of models: `{teacher}`, `{run}@{images}`, or `{run}@best-{metric}.{value}-{sampler}-{seeds}`.

The name of a selected snapshot holds all that the selection depends on, so two tables that select differently never
share a file. A snapshot of another EMA than the run's main one ends in `-ema{half_life}`, and of an average with a
power-function profile in its relative standard deviation, below 1: `-ema0.08`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

NAME = "[a-z0-9_]+"
"""Pattern of the names in config.yaml."""

RUN = r"[a-z0-9_]+(?:\.[A-Za-z0-9_.,=+-]+)?"
"""Pattern of run names: a name, and for a member of a family the values that it varies, `d2o.seed=1`."""

SEEDS = "[0-9]+-[0-9]+"
"""Pattern of seed blocks, `first-last`."""

# Without named groups: rules insert the pattern into patterns that have names.
MODEL = rf"({RUN})(?:@(?:([0-9]+)|best-({NAME})\.({NAME})-({NAME})-({SEEDS}))(?:-ema([0-9]+|0\.[0-9]+))?)?"
"""Pattern of model names."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The number by which a snapshot is selected: `{metric}.{value}` of a sampler's images of one seed block."""

    metric: str
    value: str
    sampler: str
    seeds: str


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A teacher by name."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """One snapshot of the run `name`; `ema` is the half-life of its EMA in images, None for the run's main one.

    A float is the relative standard deviation of an average that is made afterwards (`onestep average`).
    """

    name: str
    images: int
    ema: int | float | None = None

    def __str__(self) -> str:
        return f"{self.name}@{self.images}{average_suffix(self.ema)}"


@dataclass(frozen=True, kw_only=True)
class Selected:
    """The best snapshot of the run `name` by one number; `ema` as in `Snapshot`."""

    name: str
    choice: Choice
    ema: int | float | None = None

    def __str__(self) -> str:
        by = self.choice
        return f"{self.name}@best-{by.metric}.{by.value}-{by.sampler}-{by.seeds}{average_suffix(self.ema)}"

    def candidate(self, images: int) -> Snapshot:
        """Return the candidate after `images` images."""
        return Snapshot(name=self.name, images=images, ema=self.ema)


Model = Teacher | Snapshot | Selected


def parse_model(text: str) -> Model:
    """Read a model's name.

    Raises:
        ValueError: The text names no model.
    """
    found = re.fullmatch(MODEL, text)
    if found is None:
        raise ValueError(f"model: got {text!r}, expected run@images, run@best-metric.value-sampler-seeds or a teacher")
    name, images, metric, value, sampler, seeds, ema = found.groups()
    average = None if ema is None else int(ema) if ema.isdecimal() else float(ema)
    if images is not None:
        return Snapshot(name=name, images=int(images), ema=average)
    if metric is None:
        return Teacher(name=name)
    return Selected(name=name, choice=Choice(metric=metric, value=value, sampler=sampler, seeds=seeds), ema=average)


def average_suffix(average: int | float | None) -> str:
    """Return the ending of file names of another EMA than the main one: `-ema100000`, `-ema0.05`; empty for None."""
    return "" if average is None else f"-ema{average}"
