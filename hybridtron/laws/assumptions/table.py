"""Every assumption that a law makes about a table, with what tells that the table breaks it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hybridtron.laws.assumptions import checkpoints, compute, diverged, experts, pooled, repeated, sweeps
from hybridtron.laws.data.runs import Runs
from hybridtron.laws.law import Law, Settings

Find = Callable[[Law, Runs, Settings], list[str]]  # warnings that begin with a kind; none where the rows keep to it


@dataclass(frozen=True)
class Assumption:
    """One assumption; `breaks` says whether a verdict that compares exponents is withheld where rows break it."""

    find: Find
    breaks: bool = True


ASSUMPTIONS = (
    Assumption(pooled.find),
    Assumption(sweeps.find),
    Assumption(repeated.find),
    Assumption(experts.find),
    Assumption(checkpoints.find),
    Assumption(diverged.find),
    Assumption(compute.find),
    Assumption(compute.find_gathered, breaks=False),
)


def broken_assumptions(law: Law, runs: Runs, settings: Settings) -> tuple[list[str], tuple[str, ...]]:
    """Return the warnings about a table, and the kinds of those that its verdict must not pass over."""
    found = [(one, text) for one in ASSUMPTIONS for text in one.find(law, runs, settings)]
    kinds = dict.fromkeys(text.partition(":")[0] for one, text in found if one.breaks)
    return [text for _, text in found], tuple(kinds)


def caveat(kinds: tuple[str, ...]) -> list[str]:
    """Return the sentence that goes before a verdict on rows that break assumptions; none where they break none."""
    if not kinds:
        return []
    return [
        f"These rows seem to break what the law assumes ({', '.join(kinds)}; see the warnings): what follows describes "
        "the table, not one recipe."
    ]
