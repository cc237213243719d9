"""Training speed on this machine, per option set, without the run's files."""
