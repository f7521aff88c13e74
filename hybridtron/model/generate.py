"""Text from a model, token by token."""

from __future__ import annotations

from collections.abc import Callable

import torch

from hybridtron.data.tokenizer import Tokenizer
from hybridtron.model.language_model import LanguageModel


@torch.no_grad()
def generate(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompt: str,
    max_tokens: int,
    *,
    context: int,
    tensor_parallel_size: int = 1,
    temperature: float = 0.8,
    top_k: int = 0,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> str:
    """Continue the prompt by up to max_tokens tokens, or to the end of the document; returns the continuation.

    Each token is drawn from the softmax of the logits over temperature, among the top_k likeliest (0: all); temperature
    0 takes the likeliest. A model in one process goes on from its state, so that recurrent layers take equally long for
    every token; it sees at most the last `context` tokens, and at least half as many. One that lies over
    `tensor_parallel_size` processes, which all call this with the same arguments and get the same text, goes over the
    last `context` tokens for every token.
    """
    generator = torch.Generator().manual_seed(seed)
    tokens = [int(i) for i in tokenizer.encode(prompt)] or [tokenizer.eod]
    start = len(tokens)
    if tensor_parallel_size == 1:
        after = _by_steps(model, context, device)
    else:
        after = _by_windows(model, context, tensor_parallel_size, tokenizer.eod, device)
    for _ in range(max_tokens):
        logits = after(tokens)[: tokenizer.vocab_size].float().cpu()
        token = _draw(logits, temperature, top_k, generator)
        if token == tokenizer.eod:
            break
        tokens.append(token)
    return tokenizer.decode(tokens[start:])


def _by_steps(model: LanguageModel, context: int, device: torch.device | str) -> Callable[[list[int]], torch.Tensor]:
    """The logits after tokens that grow from call to call, from the state after those of the last call."""
    state, first, seen = model.initial_state(1), 0, 0  # what is in the state: tokens[first:seen]

    def after(tokens: list[int]) -> torch.Tensor:
        nonlocal state, first, seen
        if len(tokens) - first > context:  # begin anew, with room for as many again
            first = seen = len(tokens) - (context + 1) // 2 if seen else len(tokens) - context
            state = model.initial_state(1)
        for token in tokens[seen:]:
            logits, state = model.step(torch.tensor([token], device=device), state)
        seen = len(tokens)
        return logits[0]

    return after


def _by_windows(
    model: LanguageModel, context: int, multiple_of: int, filler: int, device: torch.device | str
) -> Callable[[list[int]], torch.Tensor]:
    """The logits after tokens, from the last of them, filled up behind to a multiple.

    Sequence parallelism needs that, and a causal model does not notice.
    """

    def after(tokens: list[int]) -> torch.Tensor:
        seen = tokens[-context:]
        window = torch.tensor([seen + [filler] * (-len(seen) % multiple_of)], device=device)  # [1, s]
        return model.logits(window)[0, len(seen) - 1]

    return after


def _draw(logits: torch.Tensor, temperature: float, top_k: int, generator: torch.Generator) -> int:
    if temperature == 0:
        return int(logits.argmax())
    if top_k:
        lowest = logits.topk(min(top_k, logits.numel())).values[-1]
        logits = logits.masked_fill(logits < lowest, float("-inf"))
    return int(torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator))
