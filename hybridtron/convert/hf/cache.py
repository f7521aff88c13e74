"""What a model of ours keeps of a batch of sequences to continue them, as a cache of transformers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Cache

from hybridtron.mixers.mixer import State
from hybridtron.mixers.state_rows import counts_tokens, join_rows, take_rows
from hybridtron.model.language_model import LanguageModel


@dataclass
class _Group:
    """Sequences that take their steps together."""

    rows: list[int]  # their places in the batch
    seen: int  # tokens so far; 0 where the state does not count them
    state: list[State]

    def take(self, rows: list[int]) -> _Group:
        """Return the group of some of its sequences."""
        if rows == self.rows:
            return self
        index = torch.tensor([self.rows.index(row) for row in rows])
        return _Group(rows, self.seen, take_rows(self.state, index))


class HybridtronCache(Cache):
    """The state of every sequence after its own tokens: padding, on either side, is never read.

    Sequences of a model whose state counts tokens (attention, implicit filters) step together with those of their own
    length, all others together.
    """

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.groups: list[_Group] = []
        self.columns = 0  # tokens of the batch so far, padding included
        self.logits: Tensor | None = None  # after the last token of every sequence [b, v]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return how many tokens each row of the batch had so far, padding included."""
        return self.columns

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """Return -1: there is no limit."""
        return -1

    @property
    def is_compileable(self) -> bool:
        """Return False: groups change with the lengths of the sequences."""
        return False

    def reset(self) -> None:
        """Forget all sequences."""
        self.groups, self.columns, self.logits = [], 0, None

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Put sequence beam_idx[i] in place i; a sequence may be taken several times, or not at all."""
        order: list[int] = beam_idx.tolist()
        groups = []
        for group in self.groups:
            rows = [row for row, before in enumerate(order) if before in group.rows]
            index = torch.tensor([group.rows.index(order[row]) for row in rows], dtype=torch.long)
            if rows:
                groups.append(_Group(rows, group.seen, take_rows(group.state, index)))
        self.groups = groups
        if self.logits is not None:
            self.logits = self.logits[beam_idx.to(self.logits.device)]

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some sequences of the batch."""
        self.reorder_cache(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Take every sequence so many times."""
        size = sum(len(group.rows) for group in self.groups)
        self.reorder_cache(torch.arange(size).repeat_interleave(repeats))

    @torch.no_grad()
    def advance(self, model: LanguageModel, tokens: Tensor, mask: Tensor, last_only: bool) -> Tensor:
        """Read the next tokens [b, s] where mask [b, s] is true; return the logits after each [b, s, v].

        The logits at a token that is not read are those after the last one that was. With `last_only` only the last
        column is returned, [b, 1, v].
        """
        batch = len(tokens)
        if not self.groups:
            self.groups = [_Group(list(range(batch)), 0, model.initial_state(batch))]
        counts: list[int] = mask.sum(1).tolist()
        packed = own_tokens_first(tokens, mask)
        history, done, active = [self._last(model, batch)], [], self.groups
        for t in range(max(counts)):
            waiting, active = active, []
            for group in waiting:
                ended = [row for row in group.rows if counts[row] <= t]
                going = [row for row in group.rows if counts[row] > t]
                done += [group.take(ended)] if ended else []
                active += [group.take(going)] if going else []
            logits = history[-1] if last_only else history[-1].clone()
            for group in active:
                logits[group.rows], group.state = model.step(packed[group.rows, t], group.state)
                group.seen += counts_tokens(group.state)
            history.append(logits)
        self.groups, self.columns, self.logits = _joined(done + active), self.columns + tokens.shape[1], history[-1]
        if last_only:
            return self.logits.clone().unsqueeze(1)
        return torch.stack(history, 1)[torch.arange(batch).unsqueeze(1), mask.cumsum(1).cpu()]

    def _last(self, model: LanguageModel, batch: int) -> Tensor:
        """Return the logits after the last token of every sequence [b, v], zeros where there was none."""
        if self.logits is None:
            embedding = model.get_parameter("embedding.weight")
            return embedding.new_zeros(batch, len(embedding))
        return self.logits


def _joined(groups: list[_Group]) -> list[_Group]:
    """Join groups that have seen equally many tokens."""
    together: dict[int, list[_Group]] = {}
    for group in groups:
        together.setdefault(group.seen, []).append(group)
    return [
        _Group([row for each in equal for row in each.rows], seen, join_rows([each.state for each in equal]))
        for seen, equal in together.items()
    ]


def own_tokens_first(tokens: Tensor, mask: Tensor) -> Tensor:
    """Move padding behind the tokens of each row [b, s], which keep their order."""
    return tokens.gather(1, (~mask).long().argsort(dim=1, stable=True))
