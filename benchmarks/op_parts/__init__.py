"""The parts of benchmarks/ops.py: sizes and inputs, forms by subject, and the table of operations."""
