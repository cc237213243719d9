"""Files of weights and states: published pickles, safetensors snapshots, training states."""
