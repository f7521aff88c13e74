"""Inputs of kernels: on the GPU where there is one, else on the CPU, where Triton's interpreter runs them."""

from functools import partial

import torch

from tests.ops import compare

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
leaf = partial(compare.leaf, device=DEVICE)
token_major = partial(compare.token_major, device=DEVICE)
