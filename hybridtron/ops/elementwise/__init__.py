"""Norms, activations and losses that work row by row, and the helpers that cut rows into blocks."""
