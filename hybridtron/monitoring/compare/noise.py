"""How much the held-out loss of one run scatters from evaluation to evaluation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

LAST, FEWEST = 6, 4  # evaluations that are looked at, and that must be there


def noise_of(tokens: Sequence[float], losses: Sequence[float]) -> float | None:
    """Return the standard deviation of the last LAST losses around the straight line through them over tokens.

    The line takes out the fall of the loss; two degrees of freedom are its own. None for fewer than FEWEST losses.
    """
    x, y = np.asarray(tokens[-LAST:], float), np.asarray(losses[-LAST:], float)
    if len(y) < FEWEST or not np.ptp(x):
        return None
    design = np.stack([np.ones_like(x), (x - x.mean()) / np.ptp(x)], axis=1)
    rest = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
    return float(np.sqrt(np.sum(rest**2) / (len(y) - 2)))
