import itertools
import math

import numpy as np
import pytest

from hybridtron.data import bigram as module
from hybridtron.data.bigram import bigram_bits_per_byte, fit_bigram
from hybridtron.data.datasets.indexed_dataset import bin_path, idx_path, write_index
from hybridtron.data.datasets.token_dataset import TokenDataset
from hybridtron.errors import UserError


def write_tokens(prefix, tokens):
    np.asarray(tokens, np.uint16).tofile(bin_path(prefix))
    write_index(idx_path(prefix), np.array([len(tokens)]), np.dtype(np.uint16))
    return prefix


@pytest.fixture
def prefix(tmp_path):
    return write_tokens(tmp_path / "train", np.random.default_rng(0).zipf(1.6, 5000).clip(max=20) - 1)


def every_pair(vocab_size):
    return (grid.ravel() for grid in np.meshgrid(np.arange(vocab_size), np.arange(vocab_size), indexing="ij"))


def test_probabilities_follow_their_definition(prefix):
    tokens = np.fromfile(bin_path(prefix), np.uint16).tolist()
    fitted = fit_bigram(prefix, vocab_size=25, smoothing=2.0)
    pairs = list(itertools.pairwise(tokens))
    for a, b in [(0, 0), (0, 1), (3, 0), (19, 18), (24, 0), (0, 24)]:
        prior = (tokens.count(b) + 1) / (5000 + 25)
        expected = (pairs.count((a, b)) + 2.0 * prior) / (sum(1 for p in pairs if p[0] == a) + 2.0)
        assert fitted.log_probs(np.array([a]), np.array([b]))[0] == pytest.approx(math.log(expected), rel=1e-12)


def test_probabilities_sum_to_one_after_every_token(prefix):
    fitted = fit_bigram(prefix, vocab_size=25)
    sums = np.exp(fitted.log_probs(*every_pair(25))).reshape(25, 25).sum(axis=1)
    assert sums == pytest.approx(np.ones(25))


def test_counting_by_sorting_and_in_blocks_equals_the_table(prefix, monkeypatch):
    table = fit_bigram(prefix, vocab_size=25)
    monkeypatch.setattr(module, "BLOCK", 37)
    assert np.array_equal(fit_bigram(prefix, vocab_size=25).seen_log_probs, table.seen_log_probs)
    monkeypatch.setattr(module, "DENSE_PAIRS", 1)
    sorted_ = fit_bigram(prefix, vocab_size=25)
    assert np.array_equal(sorted_.seen_pairs, table.seen_pairs)
    assert np.array_equal(sorted_.seen_log_probs, table.seen_log_probs)


def test_bits_per_byte_are_the_mean_over_the_evaluation_windows(prefix):
    fitted, dataset = fit_bigram(prefix, vocab_size=25), TokenDataset(prefix, seq_len=50)
    total = 0.0
    for i in range(7):
        window = dataset.eval_window(i, 7)
        total -= sum(fitted.log_probs(window[k : k + 1], window[k + 1 : k + 2])[0] for k in range(50))
    expected = total / (7 * 50) / math.log(2) / 3.5
    assert bigram_bits_per_byte(fitted, dataset, 7, bytes_per_token=3.5) == pytest.approx(expected, rel=1e-12)


def test_first_tokens_of_isolated_documents_are_no_targets(tmp_path):
    prefix = write_tokens(tmp_path / "documents", np.random.default_rng(0).integers(0, 25, 400))
    write_index(idx_path(prefix), np.full(80, 5), np.dtype(np.uint16))  # 5 tokens each
    fitted, dataset = fit_bigram(prefix, vocab_size=25), TokenDataset(prefix, seq_len=50)
    windows = dataset.eval_windows(np.arange(7), 7)
    inside = [(row[k : k + 1], row[k + 1 : k + 2]) for row in windows for k in range(50) if (k + 1) % 5]
    expected = -sum(fitted.log_probs(*pair)[0] for pair in inside) / len(inside) / math.log(2)
    assert bigram_bits_per_byte(fitted, dataset, 7, 1.0, isolate=True) == pytest.approx(expected, rel=1e-12)


def test_a_repeating_text_costs_next_to_nothing_and_noise_its_entropy(tmp_path):
    repeating = write_tokens(tmp_path / "repeating", [65, 66, 67, 68] * 2000)
    fitted = fit_bigram(repeating, 257)
    assert bigram_bits_per_byte(fitted, TokenDataset(repeating, 100), 20, 1.0) < 0.01
    noise = write_tokens(tmp_path / "noise", np.random.default_rng(1).integers(0, 16, 100_000))
    assert bigram_bits_per_byte(fit_bigram(noise, 257), TokenDataset(noise, 100), 200, 1.0) == pytest.approx(
        4, abs=0.05
    )


def test_bad_input(prefix, tmp_path):
    with pytest.raises(UserError, match=r"model.vocab_size = 10: is too small .* token id 19"):
        fit_bigram(prefix, vocab_size=10)
    with pytest.raises(UserError, match="smoothing: 0"):
        fit_bigram(prefix, vocab_size=25, smoothing=0)
    with pytest.raises(UserError, match="a bigram needs two"):
        fit_bigram(write_tokens(tmp_path / "one", [1]), vocab_size=25)
