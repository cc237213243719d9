"""Does freezing help generators of other networks than EDM's U-Nets, such as transformers? The paper leaves it open."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from onestep.studies.freezing_elsewhere import FreezingElsewhere, gap_rule

__all__ = ["FreezingByNetwork"]


@dataclass(frozen=True, kw_only=True)
class FreezingByNetwork(FreezingElsewhere):
    """Generators of several networks by D2O, each with everything trained and with frozen parameters.

    Options as in `FreezingElsewhere`: `frozen` has the pairs, and `known` is the arm of EDM's U-Net, the control.
    """

    question: ClassVar[str] = "Freezing most parameters helps D2O with other networks than EDM's U-Net, too."
    rule: ClassVar[str] = gap_rule("networks other than EDM's U-Net", gap_of="network")
