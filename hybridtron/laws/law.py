"""The parts of every scaling law: its declaration, the settings of a fit, and the fitted result."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

import hybridtron
from hybridtron.laws.data.runs import Runs
from hybridtron.reporting.shown import Shown


@dataclass(frozen=True)
class Settings:
    """Choices of the user about a fit.

    Attributes:
        delta: Huber threshold on the residual; None takes the law's own (`math.inf` means least squares).
        bootstrap: replicates for the intervals; 0 asks for none.
        seed: of every random draw; the same seed gives the same answer whatever `jobs` is.
        group: column that names the run a row belongs to; its rows are resampled together.
        holdout: runs (budgets, for `isoflop`) of the largest compute kept out of the extrapolation check;
            None takes about a tenth, 0 skips the check.
        predict: points to predict, e.g. `{"N": 6.9e9, "D": 1.38e11}` or `{"C": 1e21}`.
        jobs: threads for the bootstrap.
        options: of one law, by the names in `Law.options`.
    """

    delta: float | None = None
    bootstrap: int = 1000
    seed: int = 0
    group: str | None = None
    holdout: int | None = None
    predict: list[dict[str, float]] = field(default_factory=list)
    jobs: int = 1
    options: Mapping[str, Any] = field(default_factory=dict)


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


@dataclass(frozen=True)
class Law:
    """The declaration of a law.

    Attributes:
        name: as typed on the command line.
        summary: the formula and what it is for, in one line.
        columns: canonical columns that the runs must have.
        parameters: public names of what is fitted.
        fit: the fit itself.
        optional_columns: canonical columns that are used when they are there.
        at_most: column -> the column above which its values cannot lie.
        options: name of each option of this law, with its default, its meaning and, where few are possible, its values.
        ignores: settings that mean nothing to this law; a warning says so when one is given.
    """

    name: str
    summary: str
    columns: tuple[str, ...]
    parameters: tuple[str, ...]
    fit: Callable[[Runs, Settings], Fit]
    optional_columns: tuple[str, ...] = ()
    at_most: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    ignores: tuple[str, ...] = ()


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
