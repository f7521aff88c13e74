"""Sequences of different lengths that go on together, and the memory of what is kept of them."""

import pytest
import torch

from hybridtron.mixers.state_rows import reserve
from hybridtron.model.generation.batch_state import BatchState
from tests.mixers.test_contract import CASES, built, held, model_config, noisy

LENGTHS = (5, 90, 1, 90)


def stored_bytes(state):
    """The memory of a state, with what lies unused in it."""
    return sum(tensor.untyped_storage().nbytes() for tensor in held(state))


@pytest.mark.parametrize("primitive", CASES)
@torch.no_grad()
def test_prompts_of_different_lengths_and_steps_after_them_give_what_each_gives_alone(primitive):
    model = noisy(built(primitive))
    tokens = torch.randint(64, (len(LENGTHS), 100), generator=torch.Generator().manual_seed(0))
    state = BatchState(model, len(LENGTHS), room=100)
    logits = [state.advance(tokens, LENGTHS)]
    for t in range(8):
        logits.append(
            state.advance(
                torch.stack([row[n + t] for row, n in zip(tokens, LENGTHS, strict=True)]).unsqueeze(1), [1] * 4
            )
        )
    for i, length in enumerate(LENGTHS):
        alone, own = [], model.initial_state(1)
        for t in range(length + 8):
            last, own = model.step(tokens[i : i + 1, t], own)
            alone.append(last[0])
        torch.testing.assert_close(
            torch.stack([row[i] for row in logits]), torch.stack(alone[length - 1 :]), atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize("primitive", ["attention", "sliding attention", "mla", "mamba1", "mamba2", "gla", "hyena_se"])
@torch.no_grad()
def test_what_is_kept_has_the_bytes_of_the_formula(primitive):
    """At 32,768 tokens, and after a prompt and steps; the last inputs of a short convolution are not in the formula."""
    config, model = model_config(primitive).blocks["x"], built(primitive)
    state = reserve(model.initial_state(1), 32768)
    assert stored_bytes(state) <= 1.1 * config.state_bytes(32768, 4) + 4 * 3 * 4 * config.hidden_size
    _, state = model.prefill(torch.zeros(1, 250, dtype=torch.long), reserve(model.initial_state(1), 256))
    for _ in range(6):
        _, state = model.step(torch.zeros(1, dtype=torch.long), state)
    assert stored_bytes(state) <= 1.1 * config.state_bytes(256, 4) + 4 * 3 * 4 * config.hidden_size
