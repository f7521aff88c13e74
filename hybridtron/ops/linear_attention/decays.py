"""Bounds of log decays."""

# Of a state, e^-40 is nothing; a sum of decays with far larger ones in it loses the digits of the others.
STRONGEST = -40.0
