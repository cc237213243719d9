"""Tests, and tools that are run as `python -m tests.tools.NAME`."""
