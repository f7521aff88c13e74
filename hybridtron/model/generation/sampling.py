"""How the next token is drawn from logits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hybridtron.errors import UserError

SMALLEST_TEMPERATURE = 1e-3


@dataclass(frozen=True)
class Sampling:
    """Settings of a draw. They act in the order in which they stand here.

    repetition_penalty: logits of tokens that the sequence holds already are divided by it where they are positive and
        multiplied by it otherwise (Keskar et al. 2019, arXiv 1909.05858, section 4.1); 1: off.
    temperature: divides the logits; 0 takes the likeliest token.
    top_k: draw among the k likeliest tokens; 0: among all.
    top_p: draw among the fewest tokens whose probabilities add up to p (Holtzman et al. 2020, arXiv 1904.09751).

    Raises UserError for a value out of range.
    """

    repetition_penalty: float = 1.0
    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.top_k, int) or self.top_k < 0:
            raise UserError(f"top_k = {self.top_k!r}: expected a whole number of at least 0")
        if not _is_number(self.temperature) or not (
            self.temperature == 0 or SMALLEST_TEMPERATURE <= self.temperature < math.inf
        ):
            raise UserError(f"temperature = {self.temperature!r}: expected 0, or a number from {SMALLEST_TEMPERATURE}")
        if not _is_number(self.top_p) or not 0 < self.top_p <= 1:
            raise UserError(f"top_p = {self.top_p!r}: expected a number above 0, up to 1")
        if not _is_number(self.repetition_penalty) or not 0 < self.repetition_penalty < math.inf:
            raise UserError(f"repetition_penalty = {self.repetition_penalty!r}: expected a number above 0, 1: off")

    def draw(self, logits: Tensor, tokens: Sequence[int], generator: torch.Generator) -> int:
        """Draw the token that follows `tokens`, from its logits [vocabulary]."""
        if self.repetition_penalty != 1:
            logits = self._penalised(logits, tokens)
        if self.temperature == 0:
            return int(logits.argmax())
        logits = logits / self.temperature
        if self.top_k:
            lowest = logits.topk(min(self.top_k, logits.numel())).values[-1]
            logits = logits.masked_fill(logits < lowest, -math.inf)
        probabilities = logits.softmax(-1)
        if self.top_p < 1:
            probabilities = self._nucleus(probabilities)
        return int(torch.multinomial(probabilities, 1, generator=generator))

    def _penalised(self, logits: Tensor, tokens: Sequence[int]) -> Tensor:
        seen = torch.tensor(sorted(set(tokens)), device=logits.device)
        values = logits[seen]
        penalised = torch.where(values > 0, values / self.repetition_penalty, values * self.repetition_penalty)
        return logits.index_copy(0, seen, penalised)

    def _nucleus(self, probabilities: Tensor) -> Tensor:
        """Set all but the likeliest tokens, which reach top_p together, to 0. The likeliest always stays."""
        ordered, order = probabilities.sort(descending=True)
        before = ordered.cumsum(-1) - ordered  # of likelier tokens
        kept = ordered.masked_fill(before >= self.top_p, 0)
        return torch.zeros_like(probabilities).index_copy(0, order, kept)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


DEFAULT_SAMPLING = Sampling()
