"""Starting the processes of a training run, here or on a cluster."""
