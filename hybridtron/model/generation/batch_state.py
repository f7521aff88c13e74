"""Sequences of different lengths that a model reads and continues together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hybridtron.mixers.mixer import State
from hybridtron.mixers.state_rows import join_rows, reserve, take_rows, without_padding
from hybridtron.model.generation.pipeline import Generator
from hybridtron.model.generation.step_plan import StepPlan, plan_steps


class BatchState:
    """The state of every sequence of a batch after its own tokens.

    Where each goes on by one token they take a step together: the shorter ones have padding in front, which nothing
    reads. Otherwise sequences of one length that go on by equally many tokens read them in parallel.
    """

    def __init__(self, model: Generator, batch: int, room: int = 0) -> None:
        """Begin `batch` sequences; caches get memory for `room` tokens of each at once."""
        self.model, self.room = model, room
        self._state: list[State] = model.initial_state(batch)
        self._plan: StepPlan | None = None  # holds the state while it takes steps
        self.order = list(range(batch))  # the sequence at each place of the state
        self.lengths = [0] * batch  # tokens of each sequence
        self.logits = model.zero_logits(batch)  # after its last token, zeros before the first [b, v]

    @property
    def state(self) -> list[State]:
        """Return the state of every layer."""
        if self._plan is not None:
            self._state, self._plan = self._plan.state(), None
        return self._state

    @state.setter
    def state(self, state: list[State]) -> None:
        self._state, self._plan = state, None

    def take(self, rows: Sequence[int]) -> None:
        """Keep the sequences `rows`, in that order; one may be taken several times, or not at all."""
        self.state, self.logits = self._state_of(rows), self.logits[list(rows)]
        self.order, self.lengths = list(range(len(rows))), [self.lengths[row] for row in rows]

    @torch.no_grad()
    def advance(self, tokens: Tensor, counts: Sequence[int], *, all_logits: bool = False) -> Tensor:
        """Read the first counts[i] of the next tokens [b, s] of each sequence; return the logits [b, v] after its last.

        With `all_logits`, those before these tokens and after each that was read [b, s + 1, v].
        """
        shape = (len(tokens), tokens.shape[1] + 1, self.logits.shape[1])
        history = self.logits.new_zeros(shape) if all_logits else None
        if history is not None:
            history[:, 0] = self.logits
        if set(counts) == {1}:
            logits = self._step(tokens[:, 0])
            if history is not None:
                history[:, 1] = logits
        else:
            logits = self.logits.clone()
            self._prefill(tokens, counts, logits, history)
        self.logits = logits
        self.lengths = [length + count for length, count in zip(self.lengths, counts, strict=True)]
        return logits if history is None else history

    def _step(self, tokens: Tensor) -> Tensor:
        """Read one token of each sequence [b]; return the logits [b, v] after it."""
        in_order = self.order == list(range(len(self.order)))
        after = self._step_in_place(tokens if in_order else tokens[self.order])
        if in_order:
            return after
        logits = torch.empty_like(after)
        logits[self.order] = after
        return logits

    def _step_in_place(self, tokens: Tensor) -> Tensor:
        """Take a step of the sequences as they lie in the state."""
        if self._plan is not None and self._plan.usable:
            return self._plan.step(tokens).clone()
        if (plan := plan_steps(self.model, self.state, len(tokens))) is None:
            logits, self.state = self.model.step(tokens, self.state)
            return logits
        self._plan = plan
        return plan.step(tokens).clone()

    def _prefill(self, tokens: Tensor, counts: Sequence[int], logits: Tensor, history: Tensor | None) -> None:
        """Read tokens in parallel; write the logits after the last of each sequence, and after each in `history`."""
        groups: dict[tuple[int, int], list[int]] = {}
        for row, key in enumerate(zip(self.lengths, counts, strict=True)):
            groups.setdefault(key, []).append(row)
        states = []
        for (length, count), rows in groups.items():
            state = without_padding(self.state if rows == self.order else self._state_of(rows), length)
            if count:
                state = reserve(state, self.room) if len(groups) == 1 else state
                if history is None:
                    logits[rows], state = self.model.prefill(tokens[rows, :count], state)
                else:
                    history[rows, 1 : count + 1], state = self.model.prefill(
                        tokens[rows, :count], state, all_logits=True
                    )
                    logits[rows] = history[rows, count]
            states.append(state)
        self.state = reserve(join_rows(states), self.room)
        self.order = [row for rows in groups.values() for row in rows]

    def _state_of(self, rows: Sequence[int]) -> list[State]:
        places = torch.tensor([self.order.index(row) for row in rows], dtype=torch.long)
        state: list[State] = take_rows(self.state, places)
        return state
