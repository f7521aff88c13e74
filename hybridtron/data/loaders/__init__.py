"""Micro-batches of one data-parallel rank.

batch_sizes  the size of the global batch in every step
sampler      which samples a rank takes in a step
batches      these samples as micro-batches; batches of an evaluation
loader       make_loader(): what gives a training step its micro-batches: memory-mapped files, or
dali         NVIDIA DALI
"""
