"""The over-training law: the excess of each architecture, and its plot."""

from __future__ import annotations

import numpy as np

from hybridtron.laws import Settings, fit
from tests.laws import planted


def test_overtraining_reports_the_excess_of_each_architecture():
    runs = planted.overtraining_runs(1, 0.003)
    two = runs.with_column("arch", ["a" if i % 2 else "b" for i in range(len(runs))])
    found = fit("overtraining", two, Settings(bootstrap=64, predict=[{"N": 1e9, "M": 640}]))
    assert set(found.sensitivity["architectures"]) == {"a", "b"}
    assert found.predictions[0]["excess_over_compute_optimal"] > 0
    panels = {series.panel for series in found.curves if "excess" in series.panel}
    assert len(panels) == 1


def test_every_run_is_in_the_plot_however_many_ratios_there_are():
    runs = planted.overtraining_runs(2, 0.003, n=60)
    spread = runs.with_column("tokens", runs["n_params"] * np.geomspace(0.5, 4000, 60))
    panel = [s for s in fit("overtraining", spread, Settings(bootstrap=0)).curves if s.panel == "loss against compute"]
    assert sum(len(series.x) for series in panel if series.kind == "points") == 60
    assert len({series.label for series in panel}) <= 8
