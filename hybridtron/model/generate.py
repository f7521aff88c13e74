"""Text from a model, token by token."""

from __future__ import annotations

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
    multiple_of: int = 1,
    temperature: float = 0.8,
    top_k: int = 0,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> str:
    """Continue the prompt by up to max_tokens tokens, or to the end of the document; returns the continuation.

    Each token is drawn from the softmax of the logits over temperature, among the top_k likeliest (0: all); temperature
    0 takes the likeliest. The model sees at most the last `context` tokens, filled up behind to a multiple of
    `multiple_of`, which sequence parallelism needs and a causal model does not notice. Every tensor-parallel process
    calls this with the same arguments and gets the same text.
    """
    generator = torch.Generator().manual_seed(seed)
    tokens = [int(i) for i in tokenizer.encode(prompt)] or [tokenizer.eod]
    start = len(tokens)
    for _ in range(max_tokens):
        seen = tokens[-context:]
        filled = seen + [tokenizer.eod] * (-len(seen) % multiple_of)
        window = torch.tensor([filled], device=device)  # [1, s]
        logits = model.logits(window)[0, len(seen) - 1, : tokenizer.vocab_size].float().cpu()
        token = _draw(logits, temperature, top_k, generator)
        if token == tokenizer.eod:
            break
        tokens.append(token)
    return tokenizer.decode(tokens[start:])


def _draw(logits: torch.Tensor, temperature: float, top_k: int, generator: torch.Generator) -> int:
    if temperature == 0:
        return int(logits.argmax())
    if top_k:
        lowest = logits.topk(min(top_k, logits.numel())).values[-1]
        logits = logits.masked_fill(logits < lowest, float("-inf"))
    return int(torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator))
