"""Which constraints of a space a pattern violates, in words."""

from __future__ import annotations

import math
from itertools import groupby, pairwise

from hybridtron.composer.space.space import Pattern, Space


def violations(space: Space, pattern: Pattern) -> list[str]:
    """Return what keeps a pattern out of a space, each with the constraint's key; nothing where the space allows it."""
    names = space.names(pattern)
    if len(pattern) != space.layers:
        length = "short" if len(pattern) < space.layers else "long"
        return [f"is too {length}: {len(pattern)} layers; expected space.layers {space.layers}"]
    found = [
        f"layer {i + 1} is {names[i]}; expected {space.blocks[block]} (space.fixed)"
        for i, block in sorted(space.fixed.items())
        if pattern[i] != block
    ]
    for block, name in enumerate(space.blocks):
        count, most, least = pattern.count(block), space.at_most.get(block, math.inf), space.at_least.get(block, 0)
        if count > most:
            found.append(f"has {count} {name}; expected at most {most} (space.at_most)")
        if count < least:
            found.append(f"has {count} {name}; expected at least {least} (space.at_least)")
        run = max((len(list(layers)) for own, layers in groupby(pattern) if own == block), default=0)
        if run > (longest := space.longest_run.get(block, run)):
            found.append(f"has {run} {name} in a row; expected at most {longest} (space.longest_run)")
    if pattern[0] in space.never_first:
        found.append(f"begins with {names[0]} (space.never_first)")
    if pattern[-1] in space.never_last:
        found.append(f"ends with {names[-1]} (space.never_last)")
    found += [
        f"layer {i} is {space.blocks[second]} right after {space.blocks[first]} (space.never_adjacent)"
        for i, (first, second) in enumerate(pairwise(pattern), start=2)
        if (first, second) in space.never_adjacent
    ]
    for limit in space.limits:
        if (cost := limit.cost(pattern.count(block) for block in range(len(space.blocks)))) > limit.most:
            found.append(f"layers cost {cost:g}; expected at most {limit.most:g} (a limit of cost)")
    if not found and not space.allows(pattern):  # of a step, around which the rest must still fit
        found.append("leaves no pattern of all layers; expected one that the constraints let a later step complete")
    return found
