"""What is told of a table, for the tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hybridtron.laws import LAWS, Settings, read_runs
from hybridtron.laws.assumptions.table import broken_assumptions
from hybridtron.laws.data.runs import Runs

DATA = Path(__file__).parents[1] / "data"


def told(law: str, runs: Runs, **settings: Any) -> list[str]:
    return broken_assumptions(LAWS[law], runs, Settings(**settings))[0]


def read(law: str, name: str, group: str | None = None, **reading: Any) -> Runs:
    declared = LAWS[law]
    return read_runs([DATA / name], declared.columns, declared.optional_columns, group=group, **reading)


def together(*parts: Runs) -> Runs:
    names = [name for name in parts[0].columns if all(name in part for part in parts)]
    return Runs.of(**{name: np.concatenate([part[name] for part in parts]) for name in names})
