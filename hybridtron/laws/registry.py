"""Every law by its name.

To add a law: write a file beside this one with a `fit(runs, settings) -> Fit` and a `Law` that declares its columns,
parameters and options, and list it here. A law that is one formula needs only the formula, its bounds and its name:
see `formula.formula_law`, and `depth_width.py` for a whole example.
"""

from __future__ import annotations

from hybridtron.laws import depth_width, downstream, isoflop, overtraining, parametric
from hybridtron.laws.law import Law

LAWS: dict[str, Law] = {law.name: law for law in (parametric.LAW, isoflop.LAW, overtraining.LAW, downstream.LAW, depth_width.LAW)}
