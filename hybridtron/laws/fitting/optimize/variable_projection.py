"""The parametric law by variable projection: at given exponents its sizes are a linear problem.

For each (alpha, beta) the sizes E, A, B that minimise the squared error of the loss are found by non-negative least
squares, which leaves a surface over two exponents (Golub and Pereyra 1973; for scaling laws Czech et al. 2026,
2603.22339). It is scanned on a grid, so that no start can miss its minimum. Each table may have sizes of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy  # its parts are imported at their first use
from numpy.typing import NDArray
from scipy.special import fdtri

from hybridtron.laws.fitting.optimize.problem import Array

_BOX = (0.01, 3.0)  # exponents
_GRID = 40
_FINE = 61
Table = tuple[Array, Array, Array]  # log N and log D about any origin, and the loss; each [n]


@dataclass(frozen=True)
class Projection:
    """The minimum over the exponents, and the surface around it.

    Attributes:
        exponents: alpha and beta, [2].
        sizes: E, A and B of each table at the origin of its logarithms.
        objective: half the squared error, summed over points.
        alphas, betas: grid of the surface, [m] each.
        rise: of the objective above its minimum, over the rise that bounds the 95 % region, [betas, alphas].
    """

    exponents: Array
    sizes: list[Array]
    objective: float
    alphas: Array
    betas: Array
    rise: Array

    def spans(self) -> list[list[float]]:
        """Return the ends of the 95 % region along alpha and along beta."""
        inside = self.rise <= 1
        axes = ((self.alphas, inside.any(axis=0)), (self.betas, inside.any(axis=1)))
        return [[float(axis[some].min()), float(axis[some].max())] for axis, some in axes]


def project(tables: Sequence[Table], freedom: int) -> Projection:
    """Minimise over the exponents; `freedom` are those of the noise (independent runs less parameters)."""
    grid = np.geomspace(*_BOX, _GRID)
    beta, alpha = np.unravel_index(int(np.argmin(surface(tables, grid, grid))), (_GRID, _GRID))
    found = scipy.optimize.minimize(
        lambda logs: inner(tables, *np.exp(logs))[0], np.log([grid[alpha], grid[beta]]), method="Nelder-Mead",
        bounds=[np.log(_BOX)] * 2, options={"xatol": 1e-7, "fatol": 0.0, "maxiter": 200},
    )  # fmt: skip
    exponents = np.exp(found.x)
    least, sizes = inner(tables, *exponents)
    rounding = 1e-12 * sum(float(loss @ loss) for *_, loss in tables)
    limit = max(least, rounding) * 2 / freedom * float(fdtri(2, freedom, 0.95))
    reach = 1.02
    for _ in range(9):
        axes = [np.geomspace(max(one / reach, _BOX[0]), min(one * reach, _BOX[1]), _GRID) for one in exponents]
        inside = surface(tables, *axes) - least <= limit
        if not (inside[[0, -1]].any() or inside[:, [0, -1]].any()):
            break
        reach **= 1.7
    alphas, betas = (_around(axis, np.flatnonzero(inside.any(axis=i))) for i, axis in enumerate(axes))
    return Projection(exponents, sizes, least, alphas, betas, (surface(tables, alphas, betas) - least) / limit)


def _around(axis: Array, rows: NDArray[np.intp]) -> Array:
    """Return a finer axis over these rows (none: the middle) and their neighbours."""
    first, last = (rows[0], rows[-1]) if len(rows) else (len(axis) // 2,) * 2
    low, high = max(first - 3, 0), min(last + 3, len(axis) - 1)
    return np.geomspace(axis[low], axis[high], _FINE)


def inner(tables: Sequence[Table], alpha: float, beta: float) -> tuple[float, list[Array]]:
    """Return half the squared error at the best sizes, and these, [3] for each table."""
    total = 0.0
    sizes: list[Array] = []
    for x, y, loss in tables:
        columns = np.stack([np.ones_like(x), np.exp(-alpha * x), np.exp(-beta * y), loss], axis=1)
        triangle = np.asarray(np.linalg.qr(columns, mode="r"))
        best, distance = scipy.optimize.nnls(triangle[:, :3], triangle[:, 3])
        sizes.append(best)
        total += distance**2 / 2
    return total, sizes


def surface(tables: Sequence[Table], alphas: Array, betas: Array) -> Array:
    """Compute half the squared error at the best sizes for a grid of exponents, [betas, alphas]."""
    total = np.zeros((len(betas), len(alphas)))
    for x, y, loss in tables:
        p, q = np.exp(-np.outer(alphas, x)), np.exp(-np.outer(betas, y))  # [m, n]
        means = p.mean(axis=1), q.mean(axis=1)[:, None], loss.mean()
        p -= means[0][:, None]
        q -= means[1]
        about = loss - means[2]
        centred = [about @ about, p @ about, (q @ about)[:, None], (p**2).sum(axis=1), (q**2).sum(axis=1)[:, None],
                   q @ p.T]  # fmt: skip
        squares, a, b = _two_terms(*centred)
        pairs = ((2, 2), (0, 2), (1, 2), (0, 0), (1, 1), (0, 1))
        raw = [term + len(x) * means[i] * means[j] for term, (i, j) in zip(centred, pairs, strict=True)]
        below_zero = means[2] - a * means[0] - b * means[1] < 0  # E would be negative: it is zero
        total += np.where(below_zero, _two_terms(*raw)[0], squares) / 2
    return total


def _two_terms(ll: Array, pl: Array, ql: Array, pp: Array, qq: Array, pq: Array) -> tuple[Array, Array, Array]:
    """Return the squared error of a p + b q - l with the best a, b >= 0, and these, from sums of products."""
    zero = np.zeros(np.broadcast_shapes(pp.shape, qq.shape))
    determinant = np.maximum(pp * qq - pq**2, 1e-300)
    a, b = (pl * qq - ql * pq) / determinant, (ql * pp - pl * pq) / determinant
    alone = [(zero + np.maximum(pl, 0) / pp, zero), (zero, zero + np.maximum(ql, 0) / qq)]
    errors = [np.maximum(ll - one * pl - other * ql, 0) + zero for one, other in alone]
    both = (a >= 0) & (b >= 0)
    first = errors[0] <= errors[1]
    error = np.where(both, np.maximum(ll - a * pl - b * ql, 0), np.minimum(*errors))
    a, b = (
        np.where(both, mine, np.where(first, alone[0][i], alone[1][i])) for i, mine in enumerate((a, b))
    )  # fmt: skip
    return error, a, b
