"""How fast the parametric law is fitted on one core, beside plain scipy L-BFGS over a tenth of the same starts.

OMP_NUM_THREADS=1 python benchmarks/laws.py [--table tests/laws/data/chinchilla_fig4.csv] [--starts 450]
OMP_NUM_THREADS=1 PYTHONPATH=. python benchmarks/laws.py --rows 100000    # a large table: seconds and memory
OMP_NUM_THREADS=1 PYTHONPATH=. python benchmarks/laws.py --coverage 400   # how often 95 % intervals hold the truth
OMP_NUM_THREADS=1 PYTHONPATH=. python benchmarks/laws.py --coverage 400 --only formulas
"""

from __future__ import annotations

import csv
import math
import resource
import sys
import time
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
from scipy.optimize import minimize

from hybridtron.cli.arguments import ArgumentParser
from hybridtron.cli.exit_code import exit_code
from hybridtron.laws import LAWS, Runs, Settings, fit
from hybridtron.laws.families.formula import FormulaLaw
from hybridtron.laws.families.loss import overtraining, parametric, precision
from hybridtron.laws.fitting.curves.curve import Build, fit_curve
from hybridtron.laws.fitting.optimize.problem import Problem, gradient
from hybridtron.laws.fitting.optimize.search import search

COVERED = ("isoflop", "parametric", "formulas")
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


def large(rows: int) -> None:
    """Print what a fit of so many rows (seed 41, noise 0.01) with 200 replicates takes."""
    from tests.laws import planted

    runs = planted.parametric_runs(41, 0.01, n=rows)
    wall, processor = timed(lambda: fit("parametric", runs, Settings(bootstrap=200)), 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{rows} rows, 200 bootstraps: {wall:.1f} s wall, {processor:.1f} s processor, peak {peak:.0f} MiB")


def coverage(sets: int, only: Collection[str]) -> None:
    """Print the share of 95 % intervals that hold the truth; `sets` of isoflop, fewer of the others."""
    if "isoflop" in only:
        all_isoflop_coverage(sets)
    if "parametric" in only:
        all_curve_coverage(sets // 4)
    if "formulas" in only:
        from tests.laws.planted_formulas import PUBLISHED

        for law in PUBLISHED:
            formula_coverage(law, sets // 2)


def all_isoflop_coverage(sets: int) -> None:
    """Print the coverage of isoflop's intervals under noise of several kinds."""
    from tests.laws import planted

    def noisy(regime: str, budgets: str, i: int) -> Runs:
        return planted.noisy_isoflop([21, i], regime, budgets, planted.NOISES[i % 4] / 2)

    def checkpoints(budgets: str, i: int) -> Runs:
        return planted.checkpoint_isoflop([41, i], planted.NOISES[i % 4] / 2, budgets)

    for budgets in planted.BUDGETS:
        for regime in ("equal", "small sizes", "outliers", "rising", "falling"):
            isoflop_coverage(f"{budgets} {regime}", sets, partial(noisy, regime, budgets))
        for group in (None, "lineage"):
            isoflop_coverage(f"{budgets} checkpoints, group {group}", sets, partial(checkpoints, budgets), group)


def all_curve_coverage(few: int) -> None:
    """Print the coverage of the parametric law's intervals, and of low floors those of overtraining too."""
    from tests.laws import planted

    curve_coverage("6x, noise 0.01", few, lambda i: planted.narrow_runs([22, i], 0.01))
    curve_coverage("wide, 0.001 to 0.01", few, lambda i: planted.parametric_runs([32, i], planted.NOISES[i % 4]))
    for group in (None, "lineage"):
        curve_coverage(f"checkpoints, group {group}", few, lambda i: planted.checkpoint_runs(
            [42, i], planted.NOISES[i % 4]), group)  # fmt: skip
    for floor in (0.0, 0.03, 0.3):
        truth = planted.PARAMETRIC | {"E": floor}
        curve_coverage(f"E {floor}", few, partial(low_floor, planted.parametric_runs, truth), truth=truth)
        truth = planted.OVERTRAINING | {"E": floor}
        curve_coverage(
            f"E {floor}", few, partial(low_floor, planted.overtraining_runs, truth), truth=truth, law=overtraining
        )


def low_floor(make: Callable[..., Runs], truth: dict[str, float], i: int) -> Runs:
    """Return set i of runs whose irreducible loss is low, noise 0.001 to 0.01, seeds [71, i]."""
    from tests.laws import planted

    return make([71, i], planted.NOISES[i % 4], truth=truth)


def isoflop_coverage(name: str, sets: int, make: Callable[[int], Runs], group: str | None = None) -> None:
    """Print the coverage of a, k_N and N_opt at 10x the largest budget."""
    from hybridtron.laws.fitting.minima.minima_fit import Axis, fit_minima
    from tests.laws import planted

    truth, axis, hits = planted.isoflop_truth(), Axis("n_params", "a", "k_N", "parameters"), []
    for i in range(sets):
        runs = make(i)
        power = fit_minima(runs, Settings(bootstrap=1, group=group), axis, 4.0).power
        far = 10 * float(runs["flops"].max())
        spans = [*power.intervals.values(), power.interval_at(far)]
        values = (truth["a"], truth["k_N"], truth["k_N"] * far ** truth["a"])
        hits.append([low <= value <= high for (low, high), value in zip(spans, values, strict=True)])
    a, k, beyond = np.mean(hits, axis=0)
    print(f"isoflop {name:32} {sets} sets: a {a:.3f}  k_N {k:.3f}  N_opt at 10x {beyond:.3f}", flush=True)


def curve_coverage(
    name: str, sets: int, make: Callable[[int], Runs], group: str | None = None,
    truth: dict[str, float] | None = None, law: ModuleType = parametric,
) -> None:  # fmt: skip
    """Print the coverage of a law's parameters that have an interval, and for parametric of the loss at 10x."""
    from tests.laws import planted

    truth = truth or planted.PARAMETRIC
    far = ["loss at 10x"] if law is parametric else []
    found: dict[str, list[bool]] = {key: [] for key in [*truth, *far]}
    estimates = []
    for i in range(sets):
        runs = make(i)
        delta = 1e-3 if law is parametric else math.inf
        fitted = fit_curve(law.build, runs, Settings(bootstrap=200, seed=i, group=group), delta)
        estimates.append(fitted.parameters["E"])
        given, true = dict(fitted.intervals or {}), dict(truth)
        if far:
            at = {column: float(runs[column].max()) * 10**0.5 for column in ("n_params", "tokens")}
            true["loss at 10x"] = planted.parametric_loss(*at.values(), **truth)
            given["loss at 10x"] = fitted.estimate_at("loss", at)["loss_interval"]
        for key, (low, high) in given.items():
            found[key].append(bool(low <= true[key] <= high))
    words = [f"{key} {np.mean(covered) if covered else np.nan:.3f} of {len(covered)}" for key, covered in found.items()]
    law_name = law.__name__.rpartition(".")[2]
    print(f"{law_name} {name}, {sets} sets: " + ", ".join(words)
          + f"; estimates of E {min(estimates):.4f} to {max(estimates):.4f}", flush=True)  # fmt: skip


def formula_coverage(law: str, sets: int) -> None:
    """Print the coverage of a law of one formula: 100 runs, noise 0.001 to 0.01, seeds [61, i], and of the loss at 10x.

    10x is sqrt(10) times the largest size and tokens, the columns that go with them scaled alike.
    """
    from tests.laws import planted
    from tests.laws.planted_formulas import PUBLISHED

    one, build, delta = PUBLISHED[law], built(law), math.inf if law == "routed-moe" else 1e-3
    found: dict[str, list[bool]] = {key: [] for key in [*one.truth, "loss at 10x"]}
    for i in range(sets):
        runs = one.runs([61, i], planted.NOISES[i % 4], 100)
        fitted = fit_curve(build, runs, Settings(bootstrap=200, seed=i), delta)
        at = one.far(runs, 10**0.5)
        given = (fitted.intervals or {}) | {"loss at 10x": fitted.estimate_at("loss", at)["loss_interval"]}
        true = one.truth | {"loss at 10x": float(one.true_loss(at))}
        for key, (low, high) in given.items():
            found[key].append(bool(low <= true[key] <= high))
    words = [f"{key} {np.mean(covered) if covered else np.nan:.2f} of {len(covered)}" for key, covered in found.items()]
    print(f"{law}, {sets} sets: " + ", ".join(words), flush=True)


def built(law: str) -> Build:
    """Return what builds the curve of a law of one formula."""
    declared = precision.law_of(*precision.BITS) if law == "precision" else LAWS[law]
    assert isinstance(declared, FormulaLaw)
    return declared.build


def main() -> None:
    """Print the timings."""
    parser = ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--table", type=Path, default=DATA / "chinchilla_fig4.csv")
    parser.add_argument("--starts", type=int, default=450, help="starts that plain L-BFGS runs from")
    parser.add_argument("--rows", type=int, help="time a generated table of so many rows instead")
    parser.add_argument("--coverage", type=int, metavar="SETS", help="print coverage over so many sets instead")
    parser.add_argument("--only", nargs="+", choices=COVERED, default=COVERED, help="laws of --coverage")
    options = parser.parse_args()
    if options.rows:
        large(options.rows)
        return
    if options.coverage:
        coverage(options.coverage, options.only)
        return
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
    sys.exit(exit_code(main))
