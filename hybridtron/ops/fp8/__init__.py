"""FP8 numbers, scales and linears: emulated, on any device."""
