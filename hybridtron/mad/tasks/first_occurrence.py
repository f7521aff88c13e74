"""Where in its row a value stands for the first time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def first_occurrence(codes: NDArray[np.int64]) -> NDArray[np.intp]:
    """For every entry of codes [rows, columns], whole numbers from 0, the first column of its row with the same code.

    Columns are packed below the codes and sorted with them, so the product of both must stay within 63 bits.
    """
    columns = codes.shape[1]
    bits = max(columns - 1, 1).bit_length()
    packed = np.sort((codes << bits) | np.arange(columns), axis=1)
    column = (packed & ((1 << bits) - 1)).astype(np.intp)
    code = packed >> bits
    begins = np.ones(codes.shape, dtype=bool)
    begins[:, 1:] = code[:, 1:] != code[:, :-1]
    start = np.maximum.accumulate(np.where(begins, np.arange(columns), 0), axis=1)  # of the run of equal codes
    first = np.empty(codes.shape, dtype=np.intp)
    np.put_along_axis(first, column, np.take_along_axis(column, start, axis=1), axis=1)
    return first
