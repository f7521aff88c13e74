"""The record of the small pattern that a run's model was grown from."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Literal

from pydantic import Field, field_validator

from hybridtron.config.schema import Strict, problem
from hybridtron.pattern import PatternError, parse


class GrownFromConfig(Strict):
    """The small pattern that model.pattern was grown from, as `hybridtron scale` writes it; changes no training."""

    pattern: str = Field(description="The small pattern, of blocks of model.blocks.")
    method: Literal["stretch", "stack"] = Field(description="How it was grown.")

    @field_validator("pattern")
    @classmethod
    def _is_a_pattern(cls, text: str) -> str:
        try:
            parse(text)
        except PatternError as error:
            raise problem("", text, f"a pattern: {str(error).splitlines()[0]}") from None
        return text

    @property
    def layers(self) -> tuple[str, ...]:
        """Return the names of the small pattern's layers."""
        return parse(self.pattern).layers

    def leads_to(self, layers: Sequence[str]) -> bool:
        """Return whether these layers can have grown from the pattern: the same runs, or the pattern first."""
        if self.method == "stack":
            return tuple(layers[: len(self.layers)]) == self.layers
        return [name for name, _ in groupby(layers)] == [name for name, _ in groupby(self.layers)]
