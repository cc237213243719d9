"""Former name of `onestep.components`."""

from onestep.components import choices, load

__all__ = ["choices", "load"]
