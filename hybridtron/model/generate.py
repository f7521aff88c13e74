"""Generate text, token by token."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hybridtron.data.tokenizer import Tokenizer
from hybridtron.errors import UserError
from hybridtron.model.language_model import LanguageModel

SMALLEST_TEMPERATURE = 1e-3

NextLogits = Callable[[list[list[int]]], Tensor]
"""Token ids of b sequences of one length -> logits [b, vocabulary] of what follows each."""


@torch.no_grad()
def generate(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    max_tokens: int,
    *,
    context: int,
    tensor_parallel_size: int = 1,
    temperature: float = 0.8,
    top_k: int = 0,
    seed: int = 0,
    start_document: bool = True,
    device: torch.device | str = "cpu",
) -> list[str]:
    """Continue each prompt by up to max_tokens tokens, or to the end of the document; return the continuations.

    With `start_document` a prompt follows the end-of-document id, as the beginning of a document does in training.
    Without it a prompt may stand anywhere in a document.

    Each token is drawn from the softmax of the logits over temperature, among the top_k likeliest (0: all); temperature
    0 takes the likeliest. Every prompt has a generator of its own, started by `seed`, so that its text does not depend
    on the others; equal prompts give different samples. A model in one process goes on from its state, so that
    recurrent layers take equally long for every token; it sees at most the last `context` tokens, and at least half as
    many. One that lies over `tensor_parallel_size` processes, which all call this with the same arguments and get the
    same text, goes over the last `context` tokens for every token.

    Raises:
        UserError: for a number out of range or a prompt that is not UTF-8 text.
    """
    _check(prompts, max_tokens, temperature, top_k, seed)
    if not prompts:
        return []
    # Equal prompts are to give different samples.
    generators = [torch.Generator().manual_seed(seed + prompts[:i].count(prompt)) for i, prompt in enumerate(prompts)]
    # Of a longer prompt the last `context` tokens count, so that all sequences begin their windows at the same lengths.
    before = [tokenizer.eod] if start_document else []
    texts = [([*before, *map(int, tokenizer.encode(prompt))] or [tokenizer.eod])[-context:] for prompt in prompts]
    starts = [len(tokens) for tokens in texts]
    if tensor_parallel_size == 1:
        next_logits = _by_steps(model, len(texts), context, device)
    else:
        next_logits = _by_windows(model, context, tensor_parallel_size, tokenizer.eod, device)
    ended = [max_tokens == 0] * len(texts)
    length = min(starts)
    while not all(ended):
        # Sequences advance together. One that has ended goes on with any token, which is not read.
        logits = next_logits([(tokens + [tokenizer.eod] * length)[:length] for tokens in texts])
        for i, tokens in enumerate(texts):
            if ended[i] or len(tokens) > length:
                continue
            token = _draw(logits[i, : tokenizer.vocab_size].float().cpu(), temperature, top_k, generators[i])
            if token != tokenizer.eod:
                tokens.append(token)
            ended[i] = token == tokenizer.eod or len(tokens) - starts[i] == max_tokens
        length += 1
    return [_continuation(tokenizer, tokens, start) for tokens, start in zip(texts, starts, strict=True)]


def _continuation(tokenizer: Tokenizer, tokens: list[int], start: int) -> str:
    """Return the text of tokens[start:].

    It is cut from the text of all tokens, since some tokenizers (sentencepiece) leave out a space at the beginning of
    what they decode.
    """
    text, prompt = tokenizer.decode(tokens), tokenizer.decode(tokens[:start])
    return text.removeprefix(prompt) if text.startswith(prompt) else tokenizer.decode(tokens[start:])


def _check(prompts: Sequence[str], max_tokens: int, temperature: float, top_k: int, seed: int) -> None:
    for name, value in (("max_tokens", max_tokens), ("top_k", top_k), ("seed", seed)):
        if not isinstance(value, int) or value < 0:
            raise UserError(f"{name} = {value!r}: expected a whole number of at least 0")
    if not isinstance(temperature, int | float) or not (
        temperature == 0 or SMALLEST_TEMPERATURE <= temperature < math.inf
    ):
        raise UserError(f"temperature = {temperature!r}: expected 0, or a number from {SMALLEST_TEMPERATURE}")
    if seed >= 2**63:
        raise UserError(f"seed = {seed}: expected a whole number from 0 to 2^63 - 1")
    for prompt in prompts:
        if not isinstance(prompt, str):
            raise UserError(f"prompt = {prompt!r}: expected text")
        try:
            prompt.encode()
        except UnicodeEncodeError:
            raise UserError(f"prompt = {prompt!r}: expected UTF-8 text") from None


def _by_steps(model: LanguageModel, batch: int, context: int, device: torch.device | str) -> NextLogits:
    """Continue from the state after the tokens of the last call."""
    state, first, seen = model.initial_state(batch), 0, 0  # what is in the state: tokens[first:seen]

    def next_logits(texts: list[list[int]]) -> Tensor:
        nonlocal state, first, seen
        length = len(texts[0])
        if length - first > context:  # begin anew, with room for as many again
            first = seen = length - (context + 1) // 2
            state = model.initial_state(batch)
        for i in range(seen, length):
            logits, state = model.step(torch.tensor([tokens[i] for tokens in texts], device=device), state)
        seen = length
        return logits

    return next_logits


def _by_windows(
    model: LanguageModel, context: int, multiple_of: int, filler: int, device: torch.device | str
) -> NextLogits:
    """Run over the last `context` tokens, filled up at their end to a multiple.

    Sequence parallelism needs that, and a causal model does not notice.
    """

    def next_logits(texts: list[list[int]]) -> Tensor:
        seen = [tokens[-context:] for tokens in texts]
        padding = [filler] * (-len(seen[0]) % multiple_of)
        window = torch.tensor([tokens + padding for tokens in seen], device=device)  # [b, s]
        return model.logits(window)[:, len(seen[0]) - 1]

    return next_logits


def _draw(logits: Tensor, temperature: float, top_k: int, generator: torch.Generator) -> int:
    if temperature == 0:
        return int(logits.argmax())
    if top_k:
        lowest = logits.topk(min(top_k, logits.numel())).values[-1]
        logits = logits.masked_fill(logits < lowest, float("-inf"))
    return int(torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator))
