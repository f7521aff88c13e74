"""The tables of a comparison of runs."""

from __future__ import annotations

from typing import Any

from hybridtron.config import yaml_text
from hybridtron.monitoring.compare.comparison import BITS, Comparison
from hybridtron.monitoring.compare.run import ComparedRun
from hybridtron.reporting.numbers import NONE, decimals, scientific, short_number
from hybridtron.reporting.table import Column, Table, decimal_column

LONGEST_VALUE = 60  # letters of a setting


def losses(comparison: Comparison) -> Table:
    """Return what each run reached: state, losses, noise, and how far it is above the best."""
    runs = comparison.runs
    places = max(3, min(6, decimals([comparison.measured(run) for run in runs])))
    shown = [
        Column("run", [run.name for run in runs]),
        Column("state", [run.state for run in runs]),
        Column("step", [_step(run) for run in runs], right=True),
        decimal_column("training loss", [run.train_loss for run in runs], places),
        decimal_column("held-out loss", [run.valid_loss for run in runs], places),
        decimal_column("with the average of weights", [run.ema_valid_loss for run in runs], places),
        Column("bits per byte", [run.bits_per_byte for run in runs], lambda value: f"{value:.{places}f}", right=True),
        Column("noise", [_noise(comparison.noise(run)) for run in runs], right=True, note=_unit(comparison)),
    ]
    if comparison.best:
        shown.append(
            Column("above the lowest", [_above(comparison, run, places) for run in runs], note=_unit(comparison))
        )
    return Table([column for column in shown if any(value is not None for value in column.values)])


def sources(comparison: Comparison) -> Table:
    """Return the held-out loss of each run on each of several sources; no rows where no run has several."""
    runs = [run for run in comparison.runs if run.valid_by_source]
    names = dict.fromkeys(name for run in runs for name in run.valid_by_source)
    losses = [decimal_column(name, [run.valid_by_source.get(name) for run in runs]) for name in names]
    return Table([Column("run", [run.name for run in runs]), *losses])


def costs(comparison: Comparison) -> Table:
    """Return how large each run is and what it has taken so far."""
    runs = comparison.runs
    hours = [None if run.seconds is None else run.seconds / 3600 for run in runs]
    active = [run.active for run in runs]
    shown = [
        Column("run", [run.name for run in runs]),
        Column("parameters", [run.parameters for run in runs], short_number, right=True),
        Column("active", active, short_number, right=True, note="parameters per token"),
        Column("tokens", [run.tokens for run in runs], short_number, right=True),
        Column("FLOPs", [run.flops for run in runs], scientific, right=True, note="of training"),
        Column("hours", hours, lambda value: f"{value:.3g}", right=True, note="of training steps"),
        Column("tokens/s", [run.tokens_per_s for run in runs], short_number, right=True, note="all processes"),
    ]
    if all(run.active == run.parameters for run in runs):
        shown.pop(2)
    return Table(shown)


def settings(comparison: Comparison) -> Table:
    """Return the settings that differ, a row for each dotted key and a column for each run."""
    names = [run.name for run in comparison.runs]
    rows = [(key, *map(_value, values)) for key, values in comparison.differences.items()]
    return Table.from_rows(("setting", *names), rows)


def folders(comparison: Comparison) -> Table:
    """Return where each run lies."""
    return Table.from_rows(("run", "folder"), [(run.name, str(run.folder)) for run in comparison.runs])


def _unit(comparison: Comparison) -> str:
    return "bits per byte" if comparison.measure == BITS else "of the held-out loss"


def _step(run: ComparedRun) -> str:
    return f"{NONE if run.step is None else f'{run.step:,}'}" + (f"/{run.steps:,}" if run.steps else "")


def _noise(noise: float | None) -> str | None:
    """Return a noise with two digits, of which more would say nothing."""
    return None if noise is None else f"{noise:.2g}" if noise >= 1e-5 else f"{noise:.0e}"


def _above(comparison: Comparison, run: ComparedRun, places: int) -> str | None:
    above = comparison.above_best(run)
    if above is None:
        return None
    if run is comparison.best:
        return "lowest"
    text = f"+{above:.{places}f}"
    return f"{text}, within the noise" if comparison.is_within_noise(run) else text


def _value(value: Any) -> str | None:
    """Return a setting as text; a block's type and keys without braces."""
    if value is None:
        return None
    if isinstance(value, dict):
        rest = ", ".join(f"{key} {inner}" for key, inner in value.items() if key != "type")
        text = f"{value.get('type', '')}: {rest}" if rest else str(value.get("type", "{}"))
    else:
        text = value if isinstance(value, str) else yaml_text.write_inline(value)
    text = " ".join(text.split())
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 3]}..."
