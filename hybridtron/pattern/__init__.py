"""The layer-pattern language: which block stands at which layer, and where pipeline stages are cut.

Grammar, items separated by blanks::

    pattern = item { item }
    item    = name | count "*" item | "(" item { item } ")" | "|"

`4*attn` is four layers, `3*(mamba mlp)` repeats a group, `|` starts a new pipeline stage. A cut inside a repeated group
cuts at every repetition; a stage is never empty. Two foreign dialects are read and written where they can say the same
thing: Megatron's hybrid strings (`M-M*-E`, one symbol per layer) and Composer's (`AAMMMM` or `2A+4M`).
"""

from hybridtron.pattern.dialects import (
    COMPOSER_NAMES,
    MEGATRON_NAMES,
    Dialect,
    from_composer,
    from_megatron,
    read,
    to_composer,
    to_megatron,
)
from hybridtron.pattern.errors import PatternError
from hybridtron.pattern.language import parse
from hybridtron.pattern.pattern import Pattern, is_name

__all__ = [
    "COMPOSER_NAMES",
    "MEGATRON_NAMES",
    "Dialect",
    "Pattern",
    "PatternError",
    "from_composer",
    "from_megatron",
    "is_name",
    "parse",
    "read",
    "to_composer",
    "to_megatron",
]
