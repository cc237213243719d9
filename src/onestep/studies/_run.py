"""Running a study: its findings as arrays, JSON, figure and Markdown, the same bytes for the same files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onestep.archive import write_arrays
from onestep.figures import style, svg
from onestep.files import sha256_of_file, write_json, write_text
from onestep.studies import Findings, Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def run_study(
    study: Study, *, name: str, options: Mapping[str, Any], files: Mapping[str, Sequence[Path]], folder: Path
) -> Findings:
    """Run a study on the files of its observables and write `{name}.npz`, `.json`, `.svg` and `.md`.

    Raises:
        ValueError: The files are not those of the observables, or the study refuses them.
    """
    expected = study.observes()
    if set(files) != set(expected):
        raise ValueError(f"study {name}: got files of {sorted(files)}, expected files of {sorted(expected)}")
    findings = study.conclude(files)
    record = {
        "study": name,
        "question": study.question,
        "verdict": findings.verdict,
        "rule": study.rule,
        "numbers": {key: float(value) for key, value in findings.numbers.items()},
        "control": {key: float(value) for key, value in findings.control.items()},
        "choices": list(study.choices),
        "options": dict(options),
        "files": {key: sorted(map(sha256_of_file, paths)) for key, paths in sorted(files.items())},
    }
    write_arrays(folder / f"{name}.npz", findings.arrays, about=record)
    write_text(folder / f"{name}.svg", drawn(findings.draw))
    write_text(folder / f"{name}.md", "\n".join(_markdown(record)) + "\n")
    write_json(folder / f"{name}.json", record)
    return findings


def drawn(draw: Callable[[Figure], None]) -> str:
    """Return a figure as the text of an SVG file, the same bytes for the same data."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with style():
        figure = Figure(figsize=(4.6, 3.0), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure)
        return svg(figure)


def _markdown(record: Mapping[str, Any]) -> Iterator[str]:
    yield from (f"# {record['study']}", "", record["question"], "", f"Verdict: **{record['verdict']}**", "")
    yield from (f"Rule: {record['rule']}", "", f"![{record['question']}]({record['study']}.svg)", "")
    yield from ("| quantity | result | control |", "|---|---|---|")
    for key in dict.fromkeys([*record["numbers"], *record["control"]]):
        cells = [record[column].get(key) for column in ("numbers", "control")]
        yield f"| {key} | " + " | ".join("" if cell is None else f"{cell:.6g}" for cell in cells) + " |"
    yield ""
    yield from (f"- {choice}" for choice in record["choices"])
