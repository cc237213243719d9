"""How fast a run trains on this machine, and which of the named options makes it faster; needs none of its files."""
