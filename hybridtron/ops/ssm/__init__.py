"""Selective state spaces: Mamba's scan and Mamba-2's state-space duality."""
