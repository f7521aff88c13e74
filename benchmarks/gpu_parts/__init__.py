"""The parts of benchmarks/gpu.py. tests/gpu takes its calls of operations from `op_calls`."""
