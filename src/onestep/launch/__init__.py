"""Training runs as SLURM jobs or as local processes."""
