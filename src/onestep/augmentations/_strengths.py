"""How strong each operation is, in both pipes (Karras et al., arXiv:2006.06676, appendix B; arXiv:2206.00364, F.2)."""

SHIFT = 0.125
"""Largest shift by whole pixels, and standard deviation of one by fractions: shares of an image's side."""

SCALE = 0.2
"""Standard deviation of log2 of a change of size."""

STRETCH = 0.2
"""Standard deviation of log2 of a change of shape that keeps the area."""

BRIGHTNESS = 0.2
"""Standard deviation of what is added to all colours."""

CONTRAST = 0.5
"""Standard deviation of log2 of the factor on all colours."""

SATURATION = 1.0
"""Standard deviation of log2 of the factor on what is colourful in a colour."""
