"""Fit L = E + A / N^alpha + B / D^beta to runs and predict a larger one.

python examples/fit_a_law.py [REPORT_FOLDER]
"""

import sys

import numpy as np

import hybridtron as ht


def made_up_runs(seed: int = 0) -> dict[str, np.ndarray]:
    """Return 40 runs with the exponents 0.34 and 0.28, and a noise of 0.3 %."""
    draw = np.random.default_rng(seed)
    params = 10 ** draw.uniform(7.5, 10, 40)
    tokens = params * 10 ** draw.uniform(0.7, 2, 40)
    loss = 1.69 + 406.4 / params**0.34 + 410.7 / tokens**0.28
    return {"params": params, "tokens": tokens, "loss": loss * np.exp(draw.normal(0, 0.003, 40))}


if __name__ == "__main__":
    fit = ht.laws.fit("parametric", made_up_runs(), bootstrap=200)
    for name, value in fit.parameters.items():
        low, high = fit.intervals[name]
        print(f"{name:6s} {value:10.4g}   95 % interval {low:.4g} to {high:.4g}")
    if len(sys.argv) > 1:
        print(f"report: {fit.report(sys.argv[1])}")
