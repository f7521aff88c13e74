"""Triton kernels. Importing a module of this folder imports Triton: `launch` does so when a kernel first runs."""
