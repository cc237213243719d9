"""What the workflow's jobs are called: run, model, seeds."""

from __future__ import annotations

from collections.abc import Iterator

from onestep.plan import Plan, train


def of_training(plan: Plan, name: str) -> str:
    """Return the words for the training of a run, such as "train digits_d2o: 40,000 images of digits from digits"."""
    intended = train.intention(plan, name)
    if intended is not None:
        return _literal(intended)
    run = plan.experiment.runs[name]
    start = f" from teacher {run.teacher}" if run.teacher is not None else ""
    start += "" if run.init is None else f", its weights from {run.init.source}"
    return _literal(
        f"train {name}: {run.objective.name}, {run.images:,} images of {run.dataset}{start}, seed {run.seed}"
    )


def of_results(plan: Plan, *, since: float) -> Iterator[str]:
    """Yield the tables that are newer than a time, in seconds since the epoch, and the places of tables and page."""
    tables = [plan.results.table(name, ".md") for name in plan.experiment.tables]
    made = [path for path in tables if path.exists() and path.stat().st_mtime >= since]
    yield from (path.read_text(encoding="utf-8") for path in made)
    yield from (f"Table: {path.resolve()}" for path in tables if path.exists())
    if plan.results.report.exists():
        yield f"Results page: {plan.results.report.resolve()}"


def _literal(text: str) -> str:
    """Return text for a rule's message, in which Snakemake replaces names in braces."""
    return text.replace("{", "{{").replace("}", "}}")
