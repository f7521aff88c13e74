"""The training order and the evaluation windows, over tokens that tell their own position."""

from itertools import groupby
from pathlib import Path

import numpy as np
import pytest

from hybridtron.data.datasets.indexed_dataset import bin_path, idx_path, write_index
from hybridtron.data.datasets.token_dataset import TokenDataset
from hybridtron.errors import UserError

NUM_TOKENS = 1000


def write_tokens(prefix: Path, tokens, dtype=np.int32) -> Path:
    tokens = np.asarray(tokens, dtype)
    tokens.tofile(bin_path(prefix))
    lengths = np.diff([0, *range(7, len(tokens), 7), len(tokens)])  # documents of 7 tokens
    write_index(idx_path(prefix), lengths, np.dtype(dtype))
    return prefix


@pytest.fixture(scope="module")
def prefix(tmp_path_factory):
    """Token i has the id i."""
    return write_tokens(tmp_path_factory.mktemp("tokens") / "train", np.arange(NUM_TOKENS))


def test_a_sample_is_a_run_of_the_stream_across_documents(prefix):
    sample = TokenDataset(prefix, seq_len=16, seed=1).samples([3])[0]
    assert sample.dtype == np.int64
    assert sample.tolist() == list(range(sample[0], sample[0] + 17))


def test_an_epoch_visits_each_window_once(prefix):
    dataset = TokenDataset(prefix, seq_len=16, seed=1)
    assert dataset.num_windows == (NUM_TOKENS - 16) // 16
    for epoch in range(3):
        samples = dataset.samples(np.arange(dataset.num_windows) + epoch * dataset.num_windows)
        starts = np.sort(samples[:, 0])
        assert starts[0] < 16
        assert np.array_equal(np.diff(starts), np.full(len(starts) - 1, 16))
        assert samples[:, 0].tolist() != starts.tolist()


def test_epochs_differ_in_order_and_starting_point(prefix):
    dataset = TokenDataset(prefix, seq_len=16, seed=1)
    n = dataset.num_windows
    epochs = [dataset.samples(np.arange(e * n, (e + 1) * n))[:, 0] for e in range(40)]
    offsets = {int(starts.min()) for starts in epochs}
    assert len(offsets) > 10
    assert len({tuple((starts // 16).tolist()) for starts in epochs}) == 40


def test_the_order_is_a_function_of_seed_and_index_alone(prefix):
    one, again, other = (TokenDataset(prefix, 16, seed) for seed in (5, 5, 6))
    indices = np.array([200, 3, 77, 3])
    assert np.array_equal(one.samples(indices), again.samples(indices))
    assert np.array_equal(one.samples(indices), np.concatenate([again.samples([i]) for i in indices]))
    assert not np.array_equal(one.samples(np.arange(20)), other.samples(np.arange(20)))


def test_the_order_is_pinned(prefix):
    """A run that goes on after an update of this code must see the same data."""
    assert TokenDataset(prefix, 16, seed=1).samples(np.arange(6))[:, 0].tolist() == [405, 597, 373, 453, 149, 501]


def test_far_samples_and_any_seed_are_fine(prefix):
    for seed in (0, -1, 2**63, 2**70):
        assert TokenDataset(prefix, 16, seed).samples([10**15]).shape == (1, 17)


@pytest.mark.parametrize("seq_len", [1, 400, 499, 500, 998, 999])
def test_every_sequence_length_that_fits_is_served(prefix, seq_len):
    dataset = TokenDataset(prefix, seq_len, seed=2)
    samples = dataset.samples(np.arange(2 * dataset.num_windows))
    assert samples.shape == (2 * dataset.num_windows, seq_len + 1)
    assert (np.diff(samples, axis=1) == 1).all()


def test_a_sequence_longer_than_the_data_names_what_fits(prefix):
    with pytest.raises(UserError, match=r"data.seq_len = 1000: .* has 1000 tokens .* at most 999"):
        TokenDataset(prefix, 1000)
    with pytest.raises(UserError, match=r"data.seq_len = 0"):
        TokenDataset(prefix, 0)


def test_evaluation_windows_are_spread_evenly_and_do_not_overlap(prefix):
    dataset = TokenDataset(prefix, 16, seed=1)
    starts = np.array([dataset.eval_window(i, 10)[0] for i in range(10)])
    assert starts[0] == 0
    assert set(np.diff(starts)) <= {96, 112}
    everything = dataset.eval_windows(np.arange(dataset.num_eval_windows), dataset.num_eval_windows)
    assert everything[:, :-1].ravel().tolist() == list(range(16 * dataset.num_eval_windows))
    assert np.array_equal(dataset.eval_windows([4], 10), TokenDataset(prefix, 16, seed=9).eval_windows([4], 10))


def test_halves_of_the_evaluation_windows_have_none_in_common(prefix):
    dataset = TokenDataset(prefix, 16)
    first, second = (dataset.eval_half(half) for half in (0, 1))
    read = [half.eval_windows(np.arange(31), 31)[:, :-1].ravel().tolist() for half in (first, second)]
    assert read == [list(range(16 * 31)), list(range(16 * 31, 16 * 62))]
    odd = TokenDataset(prefix, 900 // 3)  # three windows: that in the middle is in neither half
    assert [odd.eval_half(half).eval_window(0, 1)[0] for half in (0, 1)] == [0, 600]
    with pytest.raises(UserError, match="1 evaluation sequence of 900 tokens, which cannot be halved"):
        TokenDataset(prefix, 900).eval_half(0)


def test_more_evaluation_windows_than_there_are(prefix):
    with pytest.raises(UserError, match=r"63 evaluation sequences of 16 tokens do not fit: .* which is 62 sequences"):
        TokenDataset(prefix, 16).eval_window(0, 63)


def test_ids_beyond_the_vocabulary_are_found_at_once(prefix, tmp_path):
    TokenDataset(prefix, 16).check_vocab(NUM_TOKENS)
    with pytest.raises(UserError, match=r"model.vocab_size = 999: is too small for .* holds token id 999"):
        TokenDataset(prefix, 16).check_vocab(NUM_TOKENS - 1)
    tokens = np.zeros(3 << 20, np.int32)
    tokens[-1] = -5
    with pytest.raises(UserError, match="token id -5"):
        TokenDataset(write_tokens(tmp_path / "negative", tokens), 16).check_vocab(10)


def test_ids_that_the_first_look_passed_over_are_found_when_they_are_read(prefix, monkeypatch):
    monkeypatch.setattr("hybridtron.data.datasets.token_dataset.SCAN_BLOCK", 50)
    monkeypatch.setattr("hybridtron.data.datasets.token_dataset.VOCAB_SCAN_TOKENS", 50)
    dataset = TokenDataset(prefix, 16)
    dataset.check_vocab(500)
    dataset.eval_window(0, 62)
    with pytest.raises(UserError, match="token id 992"):
        dataset.eval_window(61, 62)


def test_uint16_files_are_served_as_int64(tmp_path):
    dataset = TokenDataset(write_tokens(tmp_path / "train", [65000] * 50, np.uint16), 8)
    assert dataset.samples([0])[0].tolist() == [65000] * 9


def test_missing_and_damaged_files_are_refused(prefix, tmp_path):
    with pytest.raises(UserError, match="the nearest there is"):
        TokenDataset(prefix.with_name("tarin"), 16)
    copy = write_tokens(tmp_path / "copy", np.arange(100))
    bin_path(copy).write_bytes(bin_path(copy).read_bytes()[:200])
    with pytest.raises(UserError, match="truncated"):
        TokenDataset(copy, 16)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_samples_are_those_read_through_megatron_core(dtype, tmp_path):
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    tokens = np.random.default_rng(0).integers(0, 60000, 500)
    dataset = TokenDataset(write_tokens(tmp_path / "train", tokens, dtype), 16, seed=3)
    theirs = IndexedDataset(str(tmp_path / "train"), mmap=True)
    stream = np.concatenate([theirs[i] for i in range(len(theirs))])
    assert np.array_equal(stream, tokens)
    windows = np.lib.stride_tricks.sliding_window_view(stream, 17)
    for sample in dataset.samples(range(2 * dataset.num_windows)):
        assert (windows == sample).all(1).sum() == 1
    for index in range(dataset.num_eval_windows):
        expected = theirs.bin_reader.read(theirs.index.dtype, 17, 16 * index * np.dtype(dtype).itemsize)
        assert np.array_equal(dataset.eval_window(index, dataset.num_eval_windows), expected)


@pytest.fixture(scope="module")
def marked(tmp_path_factory):
    """Documents of 0 to 40 tokens, each of one sequence or two, and the document of every token."""
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    prefix, numbers = tmp_path_factory.mktemp("documents") / "train", np.random.default_rng(0)
    sizes = [0, 0, 1, 40, 0, 1, 1, *numbers.integers(0, 20, 20), 17, 0]
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.int32)
    for number, size in enumerate(sizes):
        builder.add_document(np.zeros(size), [size] if number % 2 else [size // 3, size - size // 3])
    builder.finalize(f"{prefix}.idx")
    return prefix, np.repeat(np.arange(len(sizes)), sizes)


@pytest.mark.parametrize("seq_len", [1, 5, 16, 60])
def test_pieces_of_documents_are_those_of_the_tokens(marked, seq_len):
    prefix, document = marked
    dataset = TokenDataset(prefix, seq_len, seed=3)
    dataset._tokens = document  # a sample's ids are the documents of its tokens
    train, evaluation = np.arange(3 * dataset.num_windows), np.arange(dataset.num_eval_windows)
    for windows, pieces in (
        (dataset.samples(train), dataset.documents(train)),
        (
            dataset.eval_windows(evaluation, len(evaluation)),
            dataset.eval_documents(evaluation, len(evaluation)),
        ),
    ):
        expected = [[len(list(run)) for _, run in groupby(window)] for window in windows.tolist()]
        assert [lengths.tolist() for lengths in pieces] == expected
    assert dataset.documents([]) == []
