"""Generate text, token by token."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hybridtron.data.tokenizers.tokenizer import Tokenizer
from hybridtron.errors import UserError
from hybridtron.model.generation.batch_state import BatchState
from hybridtron.model.generation.pipeline import Generator
from hybridtron.model.generation.sampling import DEFAULT_SAMPLING, Sampling

LARGEST_BATCH = 32  # prompts that advance together

NextLogits = Callable[[list[list[int]]], Tensor]
"""Token ids of b sequences -> logits [b, vocabulary] of what follows each."""


@dataclass(frozen=True)
class Completion:
    """How a prompt goes on."""

    prompt: str
    text: str
    tokens: tuple[int, ...]  # ids that were drawn, without the end of the document
    log_probs: tuple[float, ...]  # of each of these given those before it, by the model: as at temperature 1
    ended_by: str  # max_tokens, document or stop


class _Sequence:
    """One prompt and what has been drawn after it."""

    def __init__(self, prompt: str, tokens: list[int], max_tokens: int, generator: torch.Generator) -> None:
        self.prompt, self.tokens, self.generator = prompt, tokens, generator
        self.start, self.limit = len(tokens), len(tokens) + max_tokens
        self.log_probs: list[float] = []
        self.text = ""
        self.ended_by = "" if max_tokens else "max_tokens"

    def extend(self, logits: Tensor, sampling: Sampling, tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        """Add the token that is drawn from logits [vocabulary], and see whether that is the end."""
        token = sampling.draw(logits, self.tokens, self.generator)
        if token == tokenizer.eod:
            self.ended_by = "document"
            return
        self.tokens.append(token)
        self.log_probs.append(float(logits.log_softmax(-1)[token]))
        if stop:
            text = _continuation(tokenizer, self.tokens, self.start)
            found = [place for each in stop if (place := text.find(each)) >= 0]
            if found:
                self.text, self.ended_by = text[: min(found)], "stop"
                return
        if len(self.tokens) == self.limit:
            self.ended_by = "max_tokens"

    def completion(self, tokenizer: Tokenizer) -> Completion:
        text = self.text if self.ended_by == "stop" else _continuation(tokenizer, self.tokens, self.start)
        return Completion(self.prompt, text, tuple(self.tokens[self.start :]), tuple(self.log_probs), self.ended_by)


def generate(
    model: Generator,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    max_tokens: int,
    *,
    context: int,
    sampling: Sampling = DEFAULT_SAMPLING,
    stop: Sequence[str] = (),
    seed: int = 0,
    start_document: bool = True,
    device: torch.device | str = "cpu",
) -> Iterator[Completion]:
    """Yield how each prompt goes on, by up to max_tokens tokens, or to the end of the document or a `stop` text.

    With `start_document` a prompt follows the end-of-document id, as the beginning of a document does in training.
    Without it a prompt may stand anywhere in a document. A text ends before the first of the `stop` texts in it.

    Every prompt has a generator of its own, started by `seed`, so that its text does not depend on the others; equal
    prompts give different samples. The model reads the prompts in parallel and goes on from its state, so that
    recurrent layers take equally long for every token; it sees at most the last `context` tokens, and at least half as
    many. Where it lies over several processes all of them call this with the same arguments and get the same text.

    Raises:
        UserError: for a number out of range or a prompt that is not UTF-8 text.
    """
    _check(prompts, max_tokens, seed, stop)
    # Equal prompts are to give different samples.
    generators = [torch.Generator().manual_seed(seed + prompts[:i].count(prompt)) for i, prompt in enumerate(prompts)]
    # Of a longer prompt the last `context` tokens count.
    before = [tokenizer.eod] if start_document else []
    encoded = [([*before, *map(int, tokenizer.encode(prompt))] or [tokenizer.eod])[-context:] for prompt in prompts]
    sequences = [
        _Sequence(prompt, tokens, max_tokens, generator)
        for prompt, tokens, generator in zip(prompts, encoded, generators, strict=True)
    ]
    for i in range(0, len(sequences), LARGEST_BATCH):
        batch = sequences[i : i + LARGEST_BATCH]
        next_logits = _by_state(model, context, max_tokens, device)
        _extend_together(batch, next_logits, sampling, tokenizer, stop)
        for each in batch:
            yield each.completion(tokenizer)


@torch.no_grad()
def _extend_together(
    batch: Sequence[_Sequence], next_logits: NextLogits, sampling: Sampling, tokenizer: Tokenizer, stop: Sequence[str]
) -> None:
    """Extend sequences to their ends, token by token."""
    while not all(each.ended_by for each in batch):
        logits = next_logits([each.tokens for each in batch])[:, : tokenizer.vocab_size].float().cpu()
        for each, row in zip(batch, logits, strict=True):
            if not each.ended_by:
                each.extend(row, sampling, tokenizer, stop)


def _continuation(tokenizer: Tokenizer, tokens: list[int], start: int) -> str:
    """Return the text of tokens[start:].

    It is cut from the text of all tokens, since some tokenizers (sentencepiece) leave out a space at the beginning of
    what they decode.
    """
    text, prompt = tokenizer.decode(tokens), tokenizer.decode(tokens[:start])
    return text.removeprefix(prompt) if text.startswith(prompt) else tokenizer.decode(tokens[start:])


def _check(prompts: Sequence[str], max_tokens: int, seed: int, stop: Sequence[str]) -> None:
    for name, value in (("max_tokens", max_tokens), ("seed", seed)):
        if not isinstance(value, int) or value < 0:
            raise UserError(f"{name} = {value!r}: expected a whole number of at least 0")
    if seed >= 2**63:
        raise UserError(f"seed = {seed}: expected a whole number from 0 to 2^63 - 1")
    for name, texts in (("prompt", prompts), ("stop", stop)):
        for text in texts:
            if not isinstance(text, str):
                raise UserError(f"{name} = {text!r}: expected text")
            try:
                text.encode()
            except UnicodeEncodeError:
                raise UserError(f"{name} = {text!r}: expected UTF-8 text") from None
    if "" in stop:
        raise UserError("stop = '': expected text of at least one character")


def _by_state(model: Generator, context: int, max_tokens: int, device: torch.device | str) -> NextLogits:
    """Continue from the state after the tokens of the last call; a sequence that is as it was goes on with any token.

    One that passes the context begins anew with its last half.
    """
    state: BatchState | None = None
    first: list[int] = []  # what is in the state: tokens[first:] of each sequence

    def next_logits(texts: list[list[int]]) -> Tensor:
        nonlocal state, first
        first = first or [0] * len(texts)
        windows = [text[start:] for text, start in zip(texts, first, strict=True)]
        if state is None or any(len(window) > context for window in windows):
            windows = [window[-((context + 1) // 2) :] if len(window) > context else window for window in windows]
            first = [len(text) - len(window) for text, window in zip(texts, windows, strict=True)]
            longest = max(map(len, windows))
            state, new = BatchState(model, len(texts), room=longest + min(max_tokens, context - longest)), windows
        else:
            new = [text[-1:] for text in texts]
        counts = list(map(len, new))
        padded = [tokens + [0] * (max(counts) - len(tokens)) for tokens in new]
        return state.advance(torch.tensor(padded, device=device), counts)

    return next_logits
