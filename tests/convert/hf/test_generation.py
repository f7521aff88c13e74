"""Generation by the cache, for every primitive: what full re-computation gives, with padding on either side."""

import pytest
import torch

from hybridtron.convert.hf import HybridtronCache
from hybridtron.model.generation.batch_state import BatchState
from tests.convert.hf.models import loaded
from tests.mixers.test_contract import CASES

LENGTHS, NEW, EOS = (9, 4, 9, 6), 5, 0
PROMPTS = torch.randint(1, 64, (4, 9), generator=torch.Generator().manual_seed(1))
OPTIONS = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": EOS, "eos_token_id": None}


def batch(side):
    tokens, mask = torch.full_like(PROMPTS, EOS), torch.zeros_like(PROMPTS)
    for i, length in enumerate(LENGTHS):
        where = slice(0, length) if side == "right" else slice(9 - length, 9)
        tokens[i, where], mask[i, where] = PROMPTS[i, :length], 1
    return tokens, mask


@torch.no_grad()
def by_recomputation(model):
    """The likeliest tokens after each prompt, each from a pass over all tokens of the sequence alone."""
    continuations = []
    for prompt, length in zip(PROMPTS, LENGTHS, strict=True):
        tokens = prompt[:length].tolist()
        for _ in range(NEW):
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
        continuations.append(tokens[length:])
    return continuations


@pytest.mark.parametrize("name", CASES)
def test_greedy_generation_by_cache_equals_recomputation(name, tmp_path):
    model = loaded(name, tmp_path)
    expected = by_recomputation(model)
    for side in ("left", "right"):
        tokens, mask = batch(side)
        written = model.generate(tokens, attention_mask=mask, **OPTIONS)[:, tokens.shape[1] :]
        assert written.tolist() == expected, side
    assert len({tuple(tokens) for tokens in expected}) > 1


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_a_cache_goes_on_in_blocks_of_any_size(name, tmp_path):
    model = loaded(name, tmp_path)
    tokens, mask = batch("left")
    whole = model(tokens, attention_mask=mask).logits
    cache = HybridtronCache()
    blocks = [
        model(tokens[:, i:j], attention_mask=mask[:, :j], past_key_values=cache).logits
        for i, j in ((0, 1), (1, 6), (6, 9))
    ]
    torch.testing.assert_close(torch.cat(blocks, 1), whole, atol=1e-4, rtol=1e-4)
    assert cache.get_seq_length() == 9


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_the_sequences_of_a_cache_can_be_reordered(name, tmp_path):
    model = loaded(name, tmp_path)
    tokens, mask = batch("left")
    order, following = torch.tensor([3, 1, 1, 0]), torch.tensor([[5], [6], [7], [8]])
    cache = model(tokens, attention_mask=mask, use_cache=True).past_key_values
    cache.reorder_cache(order)
    after = model(following, past_key_values=cache).logits[:, 0]
    for i, row in enumerate(order):
        alone = torch.cat([PROMPTS[row, : LENGTHS[row]], following[i]]).unsqueeze(0)
        torch.testing.assert_close(after[i], model(alone).logits[0, -1], atol=1e-4, rtol=1e-4)


def test_beams_and_samples_do_not_depend_on_the_cache(tmp_path):
    model = loaded("parallel", tmp_path)
    tokens, mask = batch("left")
    for options in ({"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2}):
        written = []
        for use_cache in (True, False):
            torch.manual_seed(0)
            written.append(model.generate(tokens, attention_mask=mask, **{**OPTIONS, **options}, use_cache=use_cache))
        assert torch.equal(*written)


def test_a_cache_of_a_conversation_is_taken_up_again(tmp_path):
    model = loaded("attention", tmp_path)
    first = model.generate(PROMPTS, attention_mask=torch.ones_like(PROMPTS), **OPTIONS, return_dict_in_generate=True)
    longer = torch.cat([first.sequences, PROMPTS], 1)
    ones = torch.ones_like(longer)
    again = model.generate(longer, attention_mask=ones, past_key_values=first.past_key_values, **OPTIONS)
    assert torch.equal(again, model.generate(longer, attention_mask=ones, use_cache=False, **OPTIONS))


@pytest.mark.parametrize("name", ["mamba2", "attention", "sliding attention", "hyena"])
def test_sequences_of_different_lengths_step_together(name, tmp_path, monkeypatch):
    batches = []
    own = BatchState._step
    monkeypatch.setattr(BatchState, "_step", lambda state, tokens: batches.append(len(tokens)) or own(state, tokens))
    tokens, mask = batch("left")
    loaded(name, tmp_path).generate(tokens, attention_mask=mask, **OPTIONS)
    assert batches == [len(tokens)] * (NEW - 1)  # the first token follows from the prompts
