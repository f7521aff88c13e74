"""C kernels for float32 on a CPU: their sources, their compilation and the checks of each call."""
