"""What a model of ours keeps of a batch of sequences to continue them, as a cache of transformers."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import Cache

from hybridtron.model.generation.batch_state import BatchState
from hybridtron.model.language_model import LanguageModel


class HybridtronCache(Cache):
    """The state of every sequence after its own tokens: padding of the batch, on either side, is never read."""

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.state: BatchState | None = None
        self.columns = 0  # tokens of the batch so far, padding included

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return how many tokens each row of the batch had so far, padding included."""
        return self.columns

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """Return -1: there is no limit."""
        return -1

    @property
    def is_compileable(self) -> bool:
        """Return False: caches grow with the sequences."""
        return False

    def reset(self) -> None:
        """Forget all sequences."""
        self.state, self.columns = None, 0

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Put sequence beam_idx[i] in place i; a sequence may be taken several times, or not at all."""
        if self.state is not None:
            self.state.take(beam_idx.tolist())

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some sequences of the batch."""
        self.reorder_cache(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Take every sequence so many times."""
        if self.state is not None:
            self.reorder_cache(torch.arange(len(self.state.lengths)).repeat_interleave(repeats))

    @torch.no_grad()
    def advance(self, model: LanguageModel, tokens: Tensor, mask: Tensor, last_only: bool) -> Tensor:
        """Read the next tokens [b, s] where mask [b, s] is true; return the logits after each [b, s, v].

        The logits at a token that is not read are those after the last one that was. With `last_only` only the last
        column is returned, [b, 1, v].
        """
        self.state = self.state or BatchState(model, len(tokens))
        logits = self.state.advance(own_tokens_first(tokens, mask), mask.sum(1).tolist(), all_logits=not last_only)
        self.columns += tokens.shape[1]
        if last_only:
            return logits.clone().unsqueeze(1)
        return logits[torch.arange(len(tokens), device=logits.device).unsqueeze(1), mask.cumsum(1).to(logits.device)]


def own_tokens_first(tokens: Tensor, mask: Tensor) -> Tensor:
    """Move padding behind the tokens of each row [b, s], which keep their order."""
    return tokens.gather(1, (~mask).long().argsort(dim=1, stable=True))
