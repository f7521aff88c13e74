"""Draws from logits."""

import math

import pytest
import torch

from hybridtron.model.generation.sampling import Sampling

LOGITS = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()


def shares(sampling, tokens=(), draws=4000):
    generator = torch.Generator().manual_seed(0)
    counts = [0] * len(LOGITS)
    for _ in range(draws):
        counts[sampling.draw(LOGITS, tokens, generator)] += 1
    return [count / draws for count in counts]


def test_tokens_are_drawn_with_their_probabilities():
    assert shares(Sampling(temperature=1)) == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.03)


@pytest.mark.parametrize(("top_p", "kept"), [(0.01, 1), (0.5, 1), (0.51, 2), (0.8, 2), (0.81, 3), (1.0, 4)])
def test_top_p_keeps_the_fewest_that_reach_it(top_p, kept):
    found = shares(Sampling(temperature=1, top_p=top_p), draws=1000)
    assert [share > 0 for share in found] == [place < kept for place in range(4)]


def test_top_p_counts_among_the_top_k():
    """Of the two likeliest the first has 0.625 of the probability."""
    assert shares(Sampling(temperature=1, top_k=2, top_p=0.6), draws=200) == [1, 0, 0, 0]


def test_the_repetition_penalty_divides_positive_logits_and_multiplies_negative_ones():
    sampling = Sampling(repetition_penalty=2.0, temperature=0)
    generator = torch.Generator()
    assert sampling.draw(torch.tensor([4.0, 3.0, -1.0]), [0, 0], generator) == 1
    assert sampling.draw(torch.tensor([-1.0, -1.5, -math.inf]), [0], generator) == 1
    assert sampling.draw(torch.tensor([4.0, 1.9, -1.0]), [0, 1], generator) == 0
