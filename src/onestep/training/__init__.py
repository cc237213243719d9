"""The loop that trains any objective: it knows phases, never papers."""
