"""The result of a fit: parameters, intervals, warnings and verdict, and the series that a plot needs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

import hybridtron
from hybridtron.laws.report.terminal import show_fit
from hybridtron.reporting.shown import Shown, show


@dataclass(frozen=True)
class Series:
    """One set of points or one line of a plot; series with the same `panel` share their axes.

    `low` and `high` are a band around `y` (a line) or error bars (points). `names` are of the points, all or none; a
    plot shows them where there are few. `note` stands above the axes. A region is where `z`, over the grid of
    the axes `x` and `y`, [y, x], is at most 1.
    """

    panel: str
    label: str
    kind: Literal["points", "line", "region"]
    x: np.ndarray
    y: np.ndarray
    x_label: str
    y_label: str
    x_log: bool = True
    y_log: bool = False
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    names: tuple[str, ...] = ()
    note: str = ""
    z: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class Fit(Shown):
    """A fitted law.

    Attributes:
        law: name of the law (this, `summary` and the settings of the user are filled in by `hybridtron.laws.fit`).
        parameters: public parameter names and values.
        objective: the sum over points that was minimised (never a mean); what it sums is `settings["objective"]`.
        n_points: rows fitted.
        n_groups: independent runs among them.
        intervals: 95 % interval of each parameter, or None when they were refused (`warnings` says why).
        settings: everything needed to repeat the fit.
        sensitivity: how far the answer moves under other reasonable choices.
        predictions: one entry for each asked point.
        warnings: each starts with its kind and a colon ("few points: ...").
        verdict: plain sentences on what the data can and cannot support.
        search: how the optimum was found, and what was found on the way.
        extrapolation: error on the largest runs when they are held out, or None.
        cross_checks: what other methods find on the same rows, by method.
        curves: what a plot needs.
        summary: that of the law.
    """

    law: str = ""
    parameters: dict[str, float]
    objective: float
    n_points: int
    n_groups: int
    intervals: dict[str, list[float]] | None = None
    settings: dict[str, Any]
    sensitivity: dict[str, Any]
    predictions: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str]
    version: str = hybridtron.__version__
    search: dict[str, Any]
    extrapolation: dict[str, Any] | None = None
    cross_checks: dict[str, Any] = field(default_factory=dict)
    verdict: list[str]
    curves: list[Series]
    summary: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the result as plain values (`fit.json`); what is not a finite number becomes None."""
        return {name: _plain(value) for name, value in vars(self).items() if name not in ("curves", "summary")}

    def report(self, folder: str | Path) -> Path:
        """Write `report.html`, `fit.json` and the plots (PNG) into a folder, and return the path of the page.

        The folder must be new, empty or an earlier report, which is replaced as a whole. Raises UserError.
        """
        from hybridtron.laws.report.page import html_report  # here, for a report is a layer above its fit
        from hybridtron.laws.report.plots import draw
        from hybridtron.reporting.publish import publish

        images = draw(self.curves)
        page = html_report(self, images).encode()
        text = json.dumps(self.to_json(), indent=2, allow_nan=False) + "\n"
        publish(Path(folder), {"fit.json": text.encode(), "report.html": page, **images})
        return Path(folder) / "report.html"


show.register(Fit, show_fit)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return "inf" if value == math.inf else None
    return value
