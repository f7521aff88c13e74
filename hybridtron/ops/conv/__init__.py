"""Causal convolutions along the sequence, short, long and of outer products."""
