"""Search engines under one interface: which patterns to evaluate next, given what is known.

An engine has no memory: what it proposes is a function of its config, the history and a random generator. That makes a
search restartable at any moment and lets several processes share it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import numpy as np
from pydantic import Field

from hybridtron.composer.space.space import Pattern, Space
from hybridtron.config.schema import Strict

DRAWS_PER_PATTERN = 200  # random draws before the remaining patterns of a nearly exhausted space are enumerated


@dataclass(frozen=True)
class Observation:
    """A finished evaluation, the mean over `seeds`; larger scores are better. `error` is its standard error, 0 where
    none is known."""

    pattern: Pattern
    score: float
    error: float = 0.0
    seeds: int = 1


@dataclass(frozen=True)
class History:
    """All that an engine knows; `seed` is that of the search."""

    space: Space
    finished: Sequence[Observation]
    pending: Sequence[Pattern] = ()
    seed: int = 0
    listed: Sequence[Pattern] = ()  # those of a file, where the engine takes them from one

    @property
    def known(self) -> set[Pattern]:
        """Return the patterns that an engine must not propose."""
        return {*(o.pattern for o in self.finished), *self.pending}


class Engine(Strict):
    """Base of every engine's config."""

    type: str
    batch: int = Field(1, ge=1, description="Patterns proposed at a time; more keep several workers busy.")
    noise: float | None = Field(
        None,
        gt=0,
        description="Standard deviation of a score over seeds, where it is known; by default it is pooled over the "
        "patterns that have several seeds.",
    )

    def propose(self, history: History, count: int, generator: np.random.Generator) -> list[Pattern]:
        """Propose at most `count` new patterns, none finished or pending; none where the space is exhausted."""
        raise NotImplementedError


class RandomSearch(Engine):
    """Uniform draws without replacement."""

    type: Literal["random"]

    def propose(self, history: History, count: int, generator: np.random.Generator) -> list[Pattern]:
        return new_patterns(history.space, history.known, count, generator)


class Exhaustive(Engine):
    """Every pattern, in the order of the blocks."""

    type: Literal["exhaustive"]

    def propose(self, history: History, count: int, generator: np.random.Generator) -> list[Pattern]:
        known = history.known
        return list(islice((pattern for pattern in history.space.enumerate() if pattern not in known), count))


class Evolution(Engine):
    """Regularised evolution (Real et al. 2019, arXiv 1802.01548)."""

    type: Literal["evolution"]
    population: int = Field(20, ge=2, description="The last evaluations, among which parents are found.")
    sample: int = Field(5, ge=1, description="How many of them are drawn; the best is the parent.")

    def propose(self, history: History, count: int, generator: np.random.Generator) -> list[Pattern]:
        known = history.known
        found: list[Pattern] = []
        while len(found) < count:
            child = self._child(history, known, generator) if len(known) >= self.population else []
            child = child or new_patterns(history.space, known, 1, generator)
            if not child:
                break
            found += child
            known.update(child)
        return found

    def _child(self, history: History, known: set[Pattern], generator: np.random.Generator) -> list[Pattern]:
        """Return a new neighbour of a tournament's winner, or of its neighbours where none is new."""
        population, space = history.finished[-self.population :], history.space
        if not population:
            return []
        drawn = generator.choice(len(population), size=min(self.sample, len(population)), replace=False)
        parent = max((population[i] for i in drawn), key=lambda observation: observation.score).pattern
        near = space.neighbours(parent)
        for candidates in (near, [far for pattern in near[:8] for far in space.neighbours(pattern)]):
            new = [pattern for pattern in dict.fromkeys(candidates) if pattern not in known]
            if new:
                return [new[int(generator.integers(len(new)))]]
        return []


def new_patterns(space: Space, known: set[Pattern], count: int, generator: np.random.Generator) -> list[Pattern]:
    """Draw unknown patterns uniformly; fewer than `count` only where no more exist."""
    found: dict[Pattern, None] = {}
    for _ in range(DRAWS_PER_PATTERN * count):
        if len(found) == count:
            return list(found)
        pattern = space.draw(generator)
        if pattern not in known:
            found[pattern] = None
    rest: list[Pattern] = []
    if space.size <= len(known) + len(found) + 1_000_000:
        rest = [pattern for pattern in space.enumerate() if pattern not in known and pattern not in found]
    order = generator.permutation(len(rest))[: count - len(found)]
    return [*found, *(rest[i] for i in order)]
