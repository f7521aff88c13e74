"""Make an architecture as large as another, so that tasks compare layers at equal parameters, FLOPs or state."""

from __future__ import annotations

from dataclasses import replace

from hybridtron.accounting.equal_size import (
    WORDS,
    Measure,
    default_key,
    fit_size,
    measure,
    require_whole_number,
)
from hybridtron.config.dotted import value_at
from hybridtron.config.nearest import one_of
from hybridtron.errors import UserError
from hybridtron.mad.models.architecture import Architecture
from hybridtron.mad.models.candidate import SEQ_LEN

_WIDTH = "model.hidden_size"
TOLERANCE = 0.01  # one unit of a width is about 0.1 % of a model of this size


def size(architecture: Architecture, of: Measure = "non_embedding") -> float:
    """Return the size of an architecture at 128 tokens; MAD counts parameters without embedding and output."""
    return measure(architecture.model(vocab_size=16, seq_len=SEQ_LEN), SEQ_LEN, of)


def with_size_of(
    architecture: Architecture,
    reference: Architecture,
    of: Measure = "non_embedding",
    adjust: str | None = None,
    tolerance: float = TOLERANCE,
) -> Architecture:
    """Return the architecture with one width changed so that it is as large as a reference; a note gives both sizes.

    `adjust` is `model.hidden_size` or `model.blocks.NAME.KEY`; by default the width of the feed-forward block
    that has most parameters, or the first where there is none.

    Raises:
        UserError: where the key holds no whole number, or no allowed value comes within the tolerance, with the
            nearest ones.
    """
    target = size(reference, of)
    key = adjust or f"model.{default_key(architecture.model(vocab_size=16, seq_len=SEQ_LEN), SEQ_LEN, of)}"
    place = f"adjust = {key}"
    known = {"model": {"hidden_size": architecture.hidden_size, "blocks": architecture.blocks}}
    if key != _WIDTH and (key.count(".") != 3 or value_at(known, key.rpartition(".")[0]) is None):
        choices = [_WIDTH, *(f"model.blocks.{name}.KEY" for name in architecture.blocks)]
        raise UserError(f"{place}: expected {one_of(key, choices)}")
    was = require_whole_number(place, value_at(known, key))
    made = architecture
    if size(architecture, of) != target:
        fit = fit_size(target, was, lambda value: size(_with_value(architecture, key, value), of))
        value = fit.within(tolerance)
        if value is None:
            reason = fit.describe(tolerance, of, reference.name)
            raise UserError(f"{place}: {reason}; expected another key")
        made = _with_value(architecture, key, value)
        key += f" {was} -> {value}"
    reached = size(made, of)
    note = f"{reached:,.0f} {WORDS[of]}, {100 * (reached / target - 1):+.2f} % from {reference.name}, by {key}"
    return replace(made, notes=(*architecture.notes, note))


def _with_value(architecture: Architecture, key: str, value: int) -> Architecture:
    if key == _WIDTH:
        return replace(architecture, hidden_size=value)
    _, _, name, inner = key.split(".")
    return replace(architecture, blocks=architecture.blocks | {name: {**architecture.blocks[name], inner: value}})
