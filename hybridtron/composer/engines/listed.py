"""Patterns from a file, one after the other, in place of an engine that chooses them."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from hybridtron.composer.engines.discrete import Engine, History
from hybridtron.composer.space.space import Pattern


class Listed(Engine):
    """The patterns of a file, in its order."""

    type: Literal["list"]
    file: str = Field(
        description="CSV or JSONL with a column `pattern` and an optional `name`, or one column without a header; in "
        "any dialect. Every row is checked against the space before anything is evaluated."
    )
    skip_invalid: bool = Field(False, description="Leave out rows that are no patterns of the space, and report them.")

    def propose(self, history: History, count: int, generator: np.random.Generator) -> list[Pattern]:
        known = history.known
        return [pattern for pattern in history.listed if pattern not in known][:count]
