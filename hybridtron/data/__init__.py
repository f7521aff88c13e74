"""Text in, token batches out.

config          the `data` section of a run's config
blend_config    the sources and stages in it: paths, weights, names
preprocessing/  prepare(): files and folders of text to train.bin/.idx, valid.bin/.idx and a report; no torch
tokenizers/     bytes, or a Hugging Face tokenizer.json
datasets/       indexed token files of Megatron's format, the order of samples in them, blends of several
loaders/        the micro-batches of a step for one data-parallel rank
bigram          the yardstick that a model's validation bits per byte are compared with
"""
