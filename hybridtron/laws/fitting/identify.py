"""Which parameters the rows leave free: directions in which a fitted curve does not move."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hybridtron.laws.fitting.optimize import Array

_FREE = 1e-13  # of the largest eigenvalue: below, the curve does not feel a direction


def free_parameters(jacobian: Array, theta: Array, public: Callable[[Array], dict[str, Array]]) -> list[str]:
    """Name the public parameters that can be traded against each other without any change of the curve.

    Args:
        jacobian: derivatives of the curve at the rows, [p, n].
        theta: fitted coordinates, [p].
        public: coordinates [k, p] -> public parameters, each [k].
    """
    size = np.linalg.norm(jacobian, axis=1)
    unit = np.where(size > 0, size, 1.0)[:, None]
    values, directions = np.linalg.eigh((jacobian / unit) @ (jacobian / unit).T)
    free = directions[:, values < _FREE * values.max()] / unit  # [p, free directions]
    if not free.size:
        return []
    before, after = public(theta[None]), public(theta + 1e-4 * (free / np.abs(free).max(axis=0)).T)
    return [name for name, value in before.items() if (np.abs(after[name] - value) > 1e-8 * np.abs(value)).any()]
