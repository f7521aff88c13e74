"""Facts about a config key that other parts of the project act on, stated where the key is declared:

chunk_size: Annotated[int, Facts(speed_only=True)] = Field(64, ge=1, description="Tokens per chunk.")
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SmallWidth = Literal["proportional", "heads", "grouped_heads", "head_channels", "derived"]


@dataclass(frozen=True)
class Facts:
    """Properties of one key.

    `speed_only`: it changes how the layer is computed, not what; a resumed run may change it.
    `sets_state`: it sets the size of the state, where architectures are compared at equal state: any whole number
    ("free"), or a divisor of the width ("divisor").
    `at_small_width`: how it follows when a large model is shrunk to a proxy's width. "proportional": with the width.
    "heads": the largest power of two up to it. "grouped_heads": in proportion to `num_heads`. "head_channels": at most
    16. "derived": its default derives it anew.
    `spans_sequence`: it is a length in tokens that a proxy sets to that of its sequences.
    """

    speed_only: bool = False
    sets_state: Literal["free", "divisor"] | None = None
    at_small_width: SmallWidth | None = None
    spans_sequence: bool = False
