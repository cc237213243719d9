"""Tensors to files and back. The only place that knows pickle, and it never executes what a pickle asks for."""
