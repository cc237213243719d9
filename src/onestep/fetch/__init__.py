"""Inputs from outside: downloaded, copied or linked once, verified, recorded. Later stages need no network."""
