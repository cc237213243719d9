"""One-step generators from pre-trained diffusion models: D2O, D2O-F and what follows them."""

__version__ = "0.1.0"
