"""Training of any objective: networks, steps, averages, states, logs."""
