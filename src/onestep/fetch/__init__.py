"""Inputs from outside: brought once, verified, recorded; nothing after this stage asks for more."""
