"""Published layouts by name, for the blocks and the layers of a space."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from hybridtron.config.nearest import one_of
from hybridtron.pattern import PatternError

ATTENTION, MLP = ("attn", "attention"), ("mlp", "swiglu", "moe")
LINEAR = ("mamba", "mamba2", "mamba3", "gdn", "gated_deltanet", "kda")  # mixers of linear cost, by usual names
NAMES = ("striped 1:4", "striped 1:8", "nemotron-like", "3:1")
NAMED = re.compile(r"striped [0-9]+:[0-9]+|nemotron-like|[0-9]+:[0-9]+")
Layers = tuple[str, ...]


def baseline(text: str, blocks: Sequence[str], layers: int) -> Layers | None:
    """Return the layers of a baseline by its name; None where `text` is no name.

    `striped 1:4` is an attention layer before every four MLPs (arXiv 2510.00379); `3:1` three linear mixers before each
    attention layer, every mixer followed by an MLP where the space has one; `nemotron-like` mixers and MLPs in turn, of
    which about 8 % of all layers are attention, evenly spaced, the rest linear (arXiv 2504.03624). A pattern that does
    not fill the layers is cut. Raises PatternError where the space lacks a block.
    """
    name = " ".join(text.split())
    if not NAMED.fullmatch(name):
        return None

    def named(kinds: Sequence[str], what: str) -> str:
        found = next((block for kind in kinds for block in blocks if block == kind), None)
        if found is None:
            known = f"one of {', '.join(kinds)} among its blocks {', '.join(blocks)}"
            raise PatternError(f"{name}: the space has no {what}; expected {known}")
        return found

    if name == "nemotron-like":
        return _nemotron(named, layers)
    first, second = map(int, name.removeprefix("striped ").split(":"))
    if not first or not second:
        raise PatternError(f"{name}: expected numbers of at least 1, as in {one_of(None, NAMES)}")
    if name.startswith("striped"):
        return _repeated((named(ATTENTION, "attention"),) * first + (named(MLP, "MLP"),) * second, layers)
    mixers = (named(LINEAR, "linear mixer"),) * first + (named(ATTENTION, "attention"),) * second
    mlp = next((block for block in MLP if block in blocks), None)
    return _repeated(mixers if mlp is None else tuple(x for mixer in mixers for x in (mixer, mlp)), layers)


def _nemotron(named: Callable[[Sequence[str], str], str], layers: int) -> Layers:
    """Return Nemotron-H's layout: its 52 layers have 24 Mamba-2, 24 MLPs and 4 of attention."""
    linear, attention, mlp = named(LINEAR, "linear mixer"), named(ATTENTION, "attention"), named(MLP, "MLP")
    turns = [linear if i % 2 == 0 else mlp for i in range(layers)]
    count = max(1, round(layers * 4 / 52))
    mixers = range(0, layers, 2)
    for i in range(count):  # in the middle of each of `count` equal parts, in place of a linear mixer
        turns[mixers[(2 * i + 1) * len(mixers) // (2 * count)]] = attention
    return tuple(turns)


def _repeated(unit: Layers, layers: int) -> Layers:
    return (unit * (layers // len(unit) + 1))[:layers]
