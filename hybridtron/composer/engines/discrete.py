"""Search engines under one interface: which patterns to evaluate next, given what is known.

An engine has no memory: what it proposes is a function of the space, the finished evaluations, the unfinished ones and
a random generator. That makes a search restartable at any moment and lets several processes share it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from hybridtron.composer.nas.space import Pattern, Space

DRAWS_PER_PATTERN = 200  # random draws before the remaining patterns of a nearly exhausted space are enumerated


@dataclass(frozen=True)
class Observation:
    """A finished evaluation; larger scores are better. `error` is the standard error over seeds, 0 for one seed."""

    pattern: Pattern
    score: float
    error: float = 0.0


class Engine(Protocol):
    def propose(
        self,
        space: Space,
        finished: Sequence[Observation],
        pending: Sequence[Pattern],
        count: int,
        generator: np.random.Generator,
    ) -> list[Pattern]:
        """Propose at most `count` new patterns, none finished or pending; none where the space is exhausted."""
        ...


class RandomSearch:
    """Uniform draws without replacement."""

    def propose(
        self,
        space: Space,
        finished: Sequence[Observation],
        pending: Sequence[Pattern],
        count: int,
        generator: np.random.Generator,
    ) -> list[Pattern]:
        return new_patterns(space, known_patterns(finished, pending), count, generator)


class Exhaustive:
    """Every pattern, in the order of the blocks."""

    def propose(
        self,
        space: Space,
        finished: Sequence[Observation],
        pending: Sequence[Pattern],
        count: int,
        generator: np.random.Generator,
    ) -> list[Pattern]:
        known = known_patterns(finished, pending)
        found: list[Pattern] = []
        for pattern in space.enumerate():
            if len(found) == count:
                break
            if pattern not in known:
                found.append(pattern)
        return found


@dataclass(frozen=True)
class Evolution:
    """Regularised evolution (Real et al. 2019, arXiv 1802.01548): the population is the last `population` evaluations,
    whatever they scored; the best of `sample` of them is the parent; a child differs from it by one step."""

    population: int = 20
    sample: int = 5

    def propose(
        self,
        space: Space,
        finished: Sequence[Observation],
        pending: Sequence[Pattern],
        count: int,
        generator: np.random.Generator,
    ) -> list[Pattern]:
        known = known_patterns(finished, pending)
        found: list[Pattern] = []
        while len(found) < count:
            if len(known) < self.population:
                child = new_patterns(space, known, 1, generator)
            else:
                child = self._child(space, finished, known, generator) or new_patterns(space, known, 1, generator)
            if not child:
                break
            found += child
            known.update(child)
        return found

    def _child(
        self, space: Space, finished: Sequence[Observation], known: set[Pattern], generator: np.random.Generator
    ) -> list[Pattern]:
        """Return a new neighbour of a tournament's winner, or of its neighbours where none is new."""
        population = finished[-self.population :]
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


def known_patterns(finished: Sequence[Observation], pending: Sequence[Pattern]) -> set[Pattern]:
    """Return the patterns that an engine must not propose."""
    return {*(o.pattern for o in finished), *pending}


def new_patterns(space: Space, known: set[Pattern], count: int, generator: np.random.Generator) -> list[Pattern]:
    """Draw unknown patterns uniformly; fewer than `count` only where no more exist."""
    found: list[Pattern] = []
    seen = set(known)
    for _ in range(DRAWS_PER_PATTERN * count):
        if len(found) == count:
            return found
        pattern = space.draw(generator)
        if pattern not in seen:
            seen.add(pattern)
            found.append(pattern)
    if space.size <= len(seen) + 1_000_000:
        rest = [pattern for pattern in space.enumerate() if pattern not in seen]
        order = generator.permutation(len(rest))[: count - len(found)]
        found += [rest[i] for i in order]
    return found
