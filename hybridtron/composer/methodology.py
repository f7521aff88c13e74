"""One-shot and incremental search: which space each step searches, given the pattern of the step before."""

from __future__ import annotations

from dataclasses import replace

from hybridtron.composer.config import MethodologyConfig
from hybridtron.composer.space import Pattern, Space
from hybridtron.errors import UserError


def num_steps(method: MethodologyConfig, layers: int) -> int:
    return 1 if method.step_layers is None else layers // method.step_layers


def step_space(method: MethodologyConfig, whole: Space, step: int, found: Pattern) -> Space:
    """The space of a step (from 0); `found` is what the step before handed on, which stays as it is.

    Constraints hold at every depth, but `at_least` only as far as the layers still to come could not make up for it,
    and `never_last` only where the last layer is final. Raises UserError where nothing can be built around `found`.
    """
    if method.step_layers is None:
        return whole
    layers = method.step_layers * (step + 1)
    to_come = whole.layers - layers
    if method.type == "end_incremental":
        kept = dict(enumerate(found))
        given = {position: block for position, block in whole.fixed.items() if position < layers}
        last_is_final = to_come == 0
    else:
        half = len(found) // 2
        behind = len(found) - half
        kept = {**dict(enumerate(found[:half])), **{layers - behind + i: found[half + i] for i in range(behind)}}
        given, last_is_final = {}, True
    space = replace(
        whole,
        layers=layers,
        fixed={**given, **kept},
        at_least={block: max(0, count - to_come) for block, count in whole.at_least.items()},
        never_last=whole.never_last if last_is_final else frozenset(),
    )
    if not space.size:
        names = " ".join(whole.names(found))
        raise UserError(
            f"space: step {step + 1} of {method.type} finds no pattern of {layers} layers around {names!r} that the "
            "constraints allow; expected looser constraints or methodology.type one_shot"
        )
    return space
