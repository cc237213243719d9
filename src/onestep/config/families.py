"""Runs that are written in terms of others: `base:` and `vary:` of a run; and names of families elsewhere.

    d2o_f:  {base: d2o, freeze: [conv, proj]}                  # the block of d2o, changed
    d2o:    {..., vary: {seed: [0, 1, 2]}}                     # the runs d2o.seed=0, d2o.seed=1 and d2o.seed=2
    rows:   [{run: d2o, sampler: one_step}]                    # one row: mean and deviation over the family
            [{run: "d2o.*", sampler: one_step}]                # one row per run
    studies: {gain: {name: ..., runs: [d2o]}}                  # all runs of the family
             {cost: {name: ..., arms: {D2O: d2o, D2O-F: "d2o_f.*", both: [d2o, d2o_f]}}}
    metrics: {rel: {..., against: {run: d2o, sampler: one_step}}}  # of each measured run the member with its seed
    d2o_x:  {..., init: {from: edm_x}}                         # of a family the member with the seed of the run

Everything is resolved before the config is checked: later code reads a config in which each run has its whole block.
"""

from __future__ import annotations

import copy
import fnmatch
import itertools
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from onestep.config.constraints import VALUE_IN_NAME
from onestep.config.messages import Place, Problem, got, not_among

_MEMBERS, _RUNS = 1_000, 2_000  # runs of a family, and of a config
_BASES = 20  # runs in a row of which each is the base of the one before


def expand(document: Any) -> tuple[Any, list[Problem]]:
    """Resolve `base:` and `vary:` of runs, and families in rows of tables; return a copy, and what is wrong with them.

    Parts of the wrong type are left to later checks.
    """
    document = copy.deepcopy(document)
    problems: list[Problem] = []
    written = document.get("runs") if isinstance(document, dict) else None
    if not isinstance(written, dict):
        return document, problems
    runs: dict[str, Any] = {}
    families: dict[str, list[str]] = {}
    for name in written if len(written) <= _RUNS else ():
        based = _with_base(name, written, problems)
        members = _members(name, based, problems)
        runs |= members
        if isinstance(based, dict) and "vary" in based:
            families[name] = list(members)
        if len(runs) > _RUNS:
            break
    if max(len(runs), len(written)) > _RUNS:
        problems.append(Problem(("runs",), f"got more than {_RUNS} runs, expected fewer"))
        runs = {}
    _choose_members(runs, families=families, problems=problems)
    document["runs"] = runs
    studies = document.get("studies")
    for study in studies.values() if isinstance(studies, dict) else ():
        if isinstance(study, dict):
            _name_runs(study, runs, families=families)
    _expand_metrics(document.get("metrics"), families=families)
    tables = document.get("tables")
    for name, table in tables.items() if isinstance(tables, dict) else ():
        if isinstance(table, dict) and isinstance(table.get("rows"), list):
            place = ("tables", name, "rows")
            table["rows"] = list(_rows(table["rows"], runs, families=families, problems=problems, place=place))
    return document, problems


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return a block changed by another: mappings merge deeply, other values replace, None removes a key.

    A block with another `name` replaces the block below, whose options are those of another class.
    """
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        if value is None:
            result.pop(key, None)
        elif isinstance(value, Mapping) and isinstance(old, Mapping):
            same = value.get("name", old.get("name")) == old.get("name")
            result[key] = merged(old, value) if same else value
        else:
            result[key] = value
    return result


def _with_base(name: str, runs: Mapping[str, Any], problems: list[Problem]) -> Any:
    chain = [name]
    while isinstance(block := runs[chain[-1]], dict) and "base" in block:
        base, place = block["base"], ("runs", chain[-1], "base")
        if not isinstance(base, str) or base not in runs or base in chain:
            own = f"{' -> '.join([*chain, str(base)])}: a run cannot be its own base"
            problems.append(Problem(place, own if base in chain else not_among(base, runs, of="runs")))
            return _without(runs[name], "base")
        if len(chain) == _BASES:
            problems.append(Problem(place, f"got more than {_BASES} runs that are each other's base, expected fewer"))
            return _without(runs[name], "base")
        chain.append(base)
    result: Any = runs[chain.pop()]
    while chain and isinstance(result, dict):
        result = merged(result, _without(runs[chain.pop()], "base"))
    return copy.deepcopy(result)


def _without(block: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {each: value for each, value in block.items() if each != key}


def _members(name: str, block: Any, problems: list[Problem]) -> dict[str, Any]:
    """Return the runs of a block by name: one for each combination of the values in `vary`, or the block alone."""
    if not isinstance(block, dict) or "vary" not in block:
        return {name: block}
    rest = _without(block, "vary")
    vary, place = block["vary"], ("runs", name, "vary")
    if wrong := list(_vary_problems(vary, rest, place=place)):
        problems += wrong
        return {name: rest}
    if (count := math.prod(len(values) for values in vary.values())) > _MEMBERS:
        problems.append(Problem(place, f"got {count} combinations, expected at most {_MEMBERS}"))
        return {name: rest}
    last = [key.rpartition(".")[2] for key in vary]
    short = [each if last.count(each) == 1 else key for key, each in zip(vary, last, strict=True)]
    members: dict[str, Any] = {}
    for values in itertools.product(*vary.values()):
        parts = [f"{key}={_spelled(value)}" for key, value in zip(short, values, strict=True)]
        member = ".".join([name, *parts])
        if member in members:
            problems.append(Problem(place, f"{member} twice, expected different values"))
        members[member] = copy.deepcopy(rest)
        for key, value in zip(vary, values, strict=True):
            *above, last_key = key.split(".")
            holder = members[member]
            for step in above:
                holder = holder.setdefault(step, {})
            holder[last_key] = copy.deepcopy(value)
    return members


def _choose_members(runs: Mapping[str, Any], *, families: Mapping[str, list[str]], problems: list[Problem]) -> None:
    """Replace a family that the `init` of a run names by its member with the training seed of the run."""
    for name, run in runs.items():
        init = run.get("init") if isinstance(run, dict) else None
        source = init.get("from") if isinstance(init, dict) else None
        if not isinstance(init, dict) or not isinstance(source, str) or source not in families:
            continue
        seed = run.get("seed", 0)
        members = [each for each in families[source] if runs.get(each, {}).get("seed", 0) == seed]
        if len(members) == 1:
            init["from"] = members[0]
        else:
            found = f"got the family {source}, of which {len(members)} runs have the training seed {seed}, expected one"
            problems.append(Problem(("runs", name, "init", "from"), f"{found}. Fix: name a run"))


def _vary_problems(vary: Any, block: Mapping[str, Any], *, place: Place) -> Iterator[Problem]:
    if not isinstance(vary, dict) or not vary:
        yield Problem(place, f"{got(vary)}, expected a mapping such as {{seed: [0, 1, 2]}}")
        return
    for key, values in vary.items():
        here = (*place, key)
        if not isinstance(values, list) or not values:
            yield Problem(here, f"{got(values)}, expected a list of values that is not empty")
            continue
        if not re.fullmatch(r"[a-z0-9_]+(\.[a-z0-9_]+)*", key):
            yield Problem(here, f"{got(key)}, expected a key of the run, or keys joined by dots")
        for index, value in enumerate(values):
            if not re.fullmatch(VALUE_IN_NAME, _spelled(value) or ""):
                expected = "expected a number, a truth value, a list of these, or text of letters, digits and _.+-"
                yield Problem((*here, index), f"{got(value)}, {expected}: values are part of the run's name")
        holder: Any = block
        for step in key.split(".")[:-1]:
            holder = holder.get(step, {}) if isinstance(holder, dict) else None
        if not isinstance(holder, dict):
            yield Problem(here, f"{key.rpartition('.')[0]} is no mapping of the run, expected one")


def _spelled(value: Any) -> str | None:
    """Return a value as part of a run's name: 1, 0.0001, true, conv+proj, none; None for a value of another type."""
    if value is None or value == []:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, str)) or (isinstance(value, float) and math.isfinite(value)):
        return str(value)
    if isinstance(value, list):
        parts = [each for each in (_spelled(each) for each in value if not isinstance(each, list)) if each is not None]
        return "+".join(parts) if len(parts) == len(value) else None
    return None


def _expand_metrics(metrics: Any, *, families: Mapping[str, list[str]]) -> None:
    """Set the runs of the families that metrics compare with."""
    for metric in metrics.values() if isinstance(metrics, dict) else ():
        against = metric.get("against") if isinstance(metric, dict) else None
        if isinstance(against, dict) and isinstance(run := against.get("run"), str) and run in families:
            against.setdefault("runs", families[run])


def _name_runs(study: dict[str, Any], runs: Mapping[str, Any], *, families: Mapping[str, list[str]]) -> None:
    """Replace families and patterns by their runs, in `runs` and in each of the `arms` of a study."""

    def all_of(names: Any) -> Any:
        listed = [names] if isinstance(names, str) else names
        return [name for each in listed for name in _named(each, runs, families=families)]

    if isinstance(study.get("runs"), list):
        study["runs"] = all_of(study["runs"])
    if isinstance(arms := study.get("arms"), dict):
        study["arms"] = {label: all_of(each) if isinstance(each, (str, list)) else each for label, each in arms.items()}


def _named(name: Any, runs: Mapping[str, Any], *, families: Mapping[str, list[str]]) -> list[Any]:
    """Return the runs of a family or of a pattern; the name itself where it is neither."""
    if isinstance(name, str) and "*" in name:
        return fnmatch.filter(runs, name) or [name]
    return families.get(name, [name]) if isinstance(name, str) else [name]


def _rows(
    rows: list[Any],
    runs: Mapping[str, Any],
    *,
    families: Mapping[str, list[str]],
    problems: list[Problem],
    place: Place,
) -> Iterator[Any]:
    """Yield rows with patterns replaced by one row per run, and with the members of families."""
    for index, row in enumerate(rows):
        run = row.get("run") if isinstance(row, dict) else None
        if isinstance(run, str) and "*" in run:
            found = fnmatch.filter(runs, run)
            if not found:
                problems.append(Problem((*place, index, "run"), not_among(run, runs, of="runs")))
            for name in found:
                label = {"label": f"{row['label']}, {name.partition('.')[2] or name}"} if "label" in row else {}
                yield {**row, "run": name, **label}
        elif isinstance(run, str) and run in families and "runs" not in row:
            yield {**row, "runs": families[run]}
        else:
            yield row
