"""How fast the parametric law is fitted on one core, beside plain scipy L-BFGS over a tenth of the same starts.

OMP_NUM_THREADS=1 python benchmarks/laws.py [--table tests/laws/data/chinchilla_fig4.csv] [--starts 450]
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.optimize import minimize

from hybridtron.laws import Runs, Settings
from hybridtron.laws.families import parametric
from hybridtron.laws.fitting.curve import fit_curve
from hybridtron.laws.fitting.optimize import Problem, gradient, search

DATA = Path(__file__).parents[1] / "tests" / "laws" / "data"


def load(path: Path) -> Runs:
    """Read the rows with `in_fit` = 1, or all rows of a table without that column."""
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("in_fit", "1") == "1"]
    return Runs.of(path.name, **{name: [float(row[name]) for row in rows] for name in ("n_params", "tokens", "loss")})


def timed(task: Callable[[], object], repeats: int = 3) -> tuple[float, float]:
    """Return the least wall and least processor seconds of `repeats` runs."""
    wall, processor = [], []
    for _ in range(repeats):
        start, used = time.perf_counter(), time.process_time()
        task()
        wall.append(time.perf_counter() - start)
        processor.append(time.process_time() - used)
    return min(wall), min(processor)


def plain_lbfgs(problem: Problem, starts: np.ndarray) -> float:
    """Run scipy's L-BFGS from every start in turn, with the same analytic gradient; return the least objective."""

    def value(theta: np.ndarray) -> tuple[float, np.ndarray]:
        total, slope = gradient(problem, theta[None])
        return float(total[0]), slope[0]

    bounds = list(zip(problem.lower, problem.upper, strict=True))
    found = [minimize(value, start, jac=True, method="L-BFGS-B", bounds=bounds).fun for start in starts]
    return float(min(found))


def main() -> None:
    """Print the timings."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--table", type=Path, default=DATA / "chinchilla_fig4.csv")
    parser.add_argument("--starts", type=int, default=450, help="starts that plain L-BFGS runs from")
    options = parser.parse_args()
    runs = load(options.table)
    curve = parametric.build(runs, parametric.DELTA)
    every = len(curve.starts) // options.starts
    some = curve.starts[::every][: options.starts]

    best = search(curve.problem, curve.starts)
    wall, processor = timed(lambda: search(curve.problem, curve.starts))
    print(f"{options.table.name}: {len(runs)} points, {len(curve.starts)} starts, objective {best.objective:.10g}")
    print(f"fit, all starts:          {wall:8.3f} s wall, {processor:8.3f} s processor")
    full, full_processor = timed(lambda: fit_curve(parametric.build, runs, Settings(bootstrap=1000), 1e-3), 1)
    print(f"fit and 1,000 bootstraps: {full:8.3f} s wall, {full_processor:8.3f} s processor")
    start, used = time.perf_counter(), time.process_time()
    lowest = plain_lbfgs(curve.problem, some)
    plain, plain_processor = time.perf_counter() - start, time.process_time() - used
    print(f"plain L-BFGS, {len(some)} starts: {plain:6.3f} s wall, {plain_processor:8.3f} s processor, "
          f"objective {lowest:.10g}")  # fmt: skip
    ratio = (plain_processor / len(some)) / (processor / len(curve.starts))
    print(f"processor time for each start, plain over ours: {ratio:.0f}x")


if __name__ == "__main__":
    main()
