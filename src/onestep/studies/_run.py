"""The verb `study`: findings as arrays, JSON, figure and Markdown, the same bytes for the same files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from onestep import components
from onestep.archive import write_arrays
from onestep.checkpoints.digests import checked_digest
from onestep.figures import style, svg
from onestep.files import write_json, write_text


def study(*, study: Mapping[str, Any], name: str, files: Mapping[str, Sequence[Path]], output: Path) -> int:
    """Run a study: write its arrays, numbers, figure and verdict.

    Args:
        study: The study and its options, as in config.yaml (JSON).
        name: Name of the study in config.yaml.
        files: The files of each of its observables, by the names of the study (JSON).
        output: The folder that receives `{name}.npz`, `.json`, `.svg` and `.md`.
    """
    from matplotlib.figure import Figure

    built = components.build("studies", study)
    expected = built.observes()
    if set(files) != set(expected):
        raise ValueError(f"study {name}: got files of {sorted(files)}, expected files of {sorted(expected)}")
    paths = {key: [Path(path) for path in group] for key, group in files.items()}
    # Before the findings, so that a damaged snapshot is refused by whatever reads it.
    digests = {key: sorted(map(checked_digest, group)) for key, group in sorted(paths.items())}
    findings = built.conclude(paths)
    record = {
        "study": name,
        "question": built.question,
        "verdict": findings.verdict,
        "rule": built.rule,
        "numbers": {key: float(value) for key, value in findings.numbers.items()},
        "control": {key: float(value) for key, value in findings.control.items()},
        "choices": list(built.choices),
        "options": dict(study),
        "files": digests,
    }
    write_arrays(output / f"{name}.npz", findings.arrays, about=record)
    with style():
        figure = Figure(figsize=(4.6, 3.0), layout="constrained")
        findings.draw(figure)
        write_text(output / f"{name}.svg", svg(figure))
    write_text(output / f"{name}.md", "\n".join(_markdown(record)) + "\n")
    write_json(output / f"{name}.json", record)
    print(f"{name}: {findings.verdict}")
    return 0


def _markdown(record: Mapping[str, Any]) -> Iterator[str]:
    yield from (f"# {record['study']}", "", record["question"], "", f"Verdict: **{record['verdict']}**", "")
    yield from (f"Rule: {record['rule']}", "", f"![{record['question']}]({record['study']}.svg)", "")
    yield from ("| quantity | result | control |", "|---|---|---|")
    for key in dict.fromkeys([*record["numbers"], *record["control"]]):
        cells = [record[column].get(key) for column in ("numbers", "control")]
        yield f"| {key} | " + " | ".join("" if cell is None else f"{cell:.6g}" for cell in cells) + " |"
    yield ""
    yield from (f"- {choice}" for choice in record["choices"])
