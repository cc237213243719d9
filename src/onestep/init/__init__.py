"""`onestep init`: a config.yaml for one's own images and checkpoint."""
