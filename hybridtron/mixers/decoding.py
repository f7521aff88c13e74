"""How a mixer generates: token by token, with what it must remember of the tokens before in a state.

    state = mixer.initial_state(batch)
    y, state = mixer.step(x, state)          # x and y [b, h]: the next token of every sequence

Steps give what `forward` gives for the whole sequence; only that a capacity of experts, a share of a whole sequence,
holds for none of them. They run in one process that holds all heads (tensor and context
parallel size 1).
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn

State = Any  # tensors whose first axis is the sequences, in tuples; attention adds the number of tokens seen


class Stepping(Protocol):
    """What the module of every mixer offers besides `forward`."""

    def initial_state(self, batch: int) -> State:
        """The state before the first token. A recurrent state is kept in float32 where parameters are narrower."""
        ...

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """The next token of every sequence, x [b, h] -> y [b, h], and the state after it.

        The state handed in is used up: its memory may hold the new one.
        """
        ...


class Stateless(nn.Module):
    """A mixer that looks at each token by itself."""

    def initial_state(self, batch: int) -> State:
        return ()

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        return self(x.unsqueeze(0)).squeeze(0), state
