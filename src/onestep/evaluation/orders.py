"""Orders of `onestep measure`: a metric's block of the config with the files of its inputs, one or several at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onestep import components
from onestep.evaluation.measurement import Block, write_measurement
from onestep.evaluation.representations import write_representations

_LISTS, _SINGLE = ("generated", "real", "held_out"), ("pixels", "real_pixels")


def measure_each(orders: Mapping[str, Mapping[str, Any]], *, output: Path) -> None:
    """Measure one block of images by several metrics into `{output}.{name}.json`; each file is read once.

    `orders` has by the name of a metric what `measure_one` takes. A metric that fails leaves the others: their numbers
    are written first.

    Raises:
        ValueError: A metric could not be computed; the message has a line for each.
    """
    block, problems = Block(), list[str]()
    for name, order in orders.items():
        try:
            measure_one(order, name=name, output=output.with_name(f"{output.name}.{name}.json"), block=block)
        except ValueError as error:
            problems.append(f"{name}: {error}")
    if problems:
        raise ValueError("\n".join(problems))


def measure_one(order: Mapping[str, Any], *, name: str, output: Path, block: Block | None = None) -> None:
    """Measure one block of images by one metric.

    `order` has the metric's block of the config, `metric`, and the options of `onestep measure` by name; a file may be
    a list of one, and is one for each feature network where the metric compares in several.

    Raises:
        ValueError: The metric could not be computed.
    """
    metric, options = components.build("metrics", order["metric"]), order["metric"]
    files = {key: _paths(order.get(key)) for key in _LISTS}
    if getattr(metric, "by_network", False):
        write_representations(metric, name=name, options=options, **files, output=output, block=block)
        return
    for key in _LISTS:
        if len(files[key]) > (key != "held_out"):
            raise ValueError(f"--{key.replace('_', '-')}: got {len(files[key])} files, expected fewer for this metric")
    write_measurement(
        metric,
        name=name,
        options=options,
        real_input=order.get("real_input"),
        output=output,
        block=block,
        **{key: next(iter(files[key]), None) for key in ("generated", "real")},
        **{key: None if order.get(key) is None else Path(order[key]) for key in _SINGLE},
    )


def _paths(value: str | Path | Sequence[str | Path] | None) -> list[Path]:
    if value is None:
        return []
    return [Path(value)] if isinstance(value, (str, Path)) else [Path(each) for each in value]
