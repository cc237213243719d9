"""A study from outside the package: how far did fine-tuning move the weights?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from onestep.studies import Findings, Log, Observable, Weights

__all__ = ["WeightsMoved"]


@dataclass(frozen=True, kw_only=True)
class WeightsMoved:
    """Relative distance of each tensor between a teacher and a model, with the teacher itself as the control.

    Attributes:
        teacher: The model at the start.
        model: The model at the end.
        run: Its run, whose log is read.
    """

    question: ClassVar[str] = "Fine-tuning moves the weights."
    rule: ClassVar[str] = "Confirmed: the mean relative distance exceeds that of the control. Contradicted: otherwise."
    choices: ClassVar[tuple[str, ...]] = ("Tensors count equally, whatever their size.",)

    teacher: str
    model: str
    run: str

    def observes(self) -> Mapping[str, Observable]:
        """Return both files of weights and the log."""
        return {"teacher": Weights(model=self.teacher), "model": Weights(model=self.model), "log": Log(run=self.run)}

    def conclude(self, files: Mapping[str, Sequence[Path]]) -> Findings:
        """Return the distances, sorted."""
        import numpy as np
        from safetensors.numpy import load_file

        first, last = (load_file(files[name][0]) for name in ("teacher", "model"))

        def distances(other: Mapping[str, Any]) -> Any:
            pairs = [(first[name], value) for name, value in other.items() if name in first]
            return np.sort([np.linalg.norm(a - b) / max(np.linalg.norm(a), 1e-12) for a, b in pairs])

        moved, control = distances(last), distances(first)
        records = len(files["log"][0].read_text().splitlines())

        def draw(figure: Any) -> None:
            axes = figure.add_subplot()
            axes.plot(moved, label="model")
            axes.plot(control, label="control")
            axes.set_xlabel("tensor")
            axes.set_ylabel("relative distance")
            axes.legend()

        return Findings(
            arrays={"moved": moved, "control": control},
            numbers={"mean": float(moved.mean()), "records": float(records)},
            control={"mean": float(control.mean())},
            verdict="confirmed" if moved.mean() > control.mean() else "contradicted",
            draw=draw,
        )
