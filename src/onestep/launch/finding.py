"""One thing that was found out about a site."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


class Mark(enum.Enum):
    """How a finding is to be taken: nothing to do, worth knowing, or something will fail."""

    OK = "ok"
    NOTE = "note"
    BAD = "bad"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What was found, and what follows.

    Attributes:
        mark: How it is to be taken.
        subject: What was looked at.
        found: What was found, in one line.
        remedy: What to do, or nothing.
        profile: Keys that follow for the profile of Snakemake.
    """

    mark: Mark
    subject: str
    found: str
    remedy: str = ""
    profile: Mapping[str, Any] = field(default_factory=dict)

    def line(self) -> str:
        """Return the finding in one line."""
        return f"{self.mark.value:4}  {self.subject}: {self.found}{f'; {self.remedy}' if self.remedy else ''}"


def judged(right: bool, *, otherwise: Mark, subject: str, found: str, remedy: str) -> Finding:
    """Return a finding that is OK where it is right, and else has a mark and a remedy."""
    if right:
        return Finding(mark=Mark.OK, subject=subject, found=found)
    return Finding(mark=otherwise, subject=subject, found=found, remedy=remedy)
