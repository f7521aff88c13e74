"""Steps of a mixer's core as prepared calls on fixed memory, so that a step costs little beside its arithmetic."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from hybridtron.ops.native.declarations import PreparedCall


class PreparedStep(NamedTuple):
    """Calls that compute one token each time that all of them are made, in order."""

    calls: Sequence[PreparedCall]
    state: Callable[[], Any] = tuple  # returns the state after the steps that were taken
    limit: int = sys.maxsize  # steps that can be taken
