"""What each data-parallel rank gets: the layout divides a step's samples and never changes them."""

import numpy as np
import pytest
import torch

from hybridtron.data.datasets.indexed_dataset import bin_path, idx_path, write_index
from hybridtron.data.datasets.token_dataset import TokenDataset
from hybridtron.data.loaders.batch_sizes import BatchSizes
from hybridtron.data.loaders.batches import eval_batches, global_batch
from hybridtron.data.loaders.sampler import BatchSampler
from hybridtron.errors import UserError

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    prefix = tmp_path_factory.mktemp("tokens") / "train"
    np.arange(5000, dtype=np.uint16).tofile(bin_path(prefix))
    write_index(idx_path(prefix), np.array([5000]), np.dtype(np.uint16))
    return TokenDataset(prefix, seq_len=32, seed=3)


def joined(ranks):
    micro_batches = [batch for batches in ranks for batch in batches]
    return torch.cat([batch.tokens for batch in micro_batches]), torch.cat([batch.labels for batch in micro_batches])


def test_labels_are_the_tokens_one_place_further(dataset):
    batch = next(global_batch(dataset, 0, BatchSampler(BatchSizes(8), 4, 0, 1)))
    assert batch.tokens.shape == batch.labels.shape == (4, 32)
    assert batch.tokens.dtype == batch.labels.dtype == torch.int64
    assert torch.equal(batch.tokens[:, 1:], batch.labels[:, :-1])
    assert torch.equal(batch.tokens + 1, batch.labels)
    assert batch.tokens.is_contiguous()
    assert batch.labels.is_contiguous()


@pytest.mark.parametrize(("micro_batch_size", "dp_size"), [(12, 1), (1, 1), (3, 2), (2, 3), (1, 12)])
def test_no_layout_changes_what_a_step_sees(dataset, micro_batch_size, dp_size):
    for step in (0, 7, 100):
        expected = dataset.samples(np.arange(step * 12, step * 12 + 12))
        samplers = [BatchSampler(BatchSizes(12), micro_batch_size, rank, dp_size) for rank in range(dp_size)]
        tokens, labels = joined(global_batch(dataset, step, sampler) for sampler in samplers)
        assert np.array_equal(tokens, expected[:, :-1])
        assert np.array_equal(labels, expected[:, 1:])


@pytest.mark.parametrize(("micro_batch_size", "dp_size"), [(6, 1), (1, 3), (3, 2)])
def test_growing_batches_take_one_sample_after_another_in_any_layout(dataset, micro_batch_size, dp_size):
    sizes = BatchSizes(24, ((2, 6), (3, 12)))
    spans = [sizes.span(step) for step in range(7)]
    assert spans == [(0, 6), (6, 6), (12, 12), (24, 12), (36, 12), (48, 24), (72, 24)]
    assert [sizes.samples(steps) for steps in (0, 2, 5, 6)] == [0, 12, 48, 72]
    for step, (first, size) in enumerate(spans):
        expected = dataset.samples(np.arange(first, first + size))
        samplers = [BatchSampler(sizes, micro_batch_size, rank, dp_size) for rank in range(dp_size)]
        tokens, _ = joined(global_batch(dataset, step, sampler) for sampler in samplers)
        assert np.array_equal(tokens, expected[:, :-1])


@pytest.mark.parametrize("num_samples", [1, 7, 12])
@pytest.mark.parametrize(("micro_batch_size", "dp_size", "multiple"), [(12, 1, 1), (4, 1, 2), (3, 2, 1), (2, 3, 2)])
def test_any_layout_evaluates_the_same_windows(dataset, num_samples, micro_batch_size, dp_size, multiple):
    """Ranks go through equally many micro-batches of one size; what only fills them up does not count."""
    counted, numbers = [], set()
    for rank in range(dp_size):
        batches, count = eval_batches(dataset, num_samples, micro_batch_size, rank, dp_size, multiple)
        tokens = [batch.tokens for batch in batches]
        assert {len(each) for each in tokens} == {micro_batch_size}
        numbers.add(len(tokens))
        counted.append(torch.cat(tokens)[:count])
    assert len(numbers) == 1
    assert numbers.pop() % multiple == 0
    assert np.array_equal(torch.cat(counted), dataset.eval_windows(np.arange(num_samples), num_samples)[:, :-1])


def test_a_rank_gets_one_contiguous_block(dataset):
    second = torch.cat(
        [batch.tokens for batch in global_batch(dataset, 2, BatchSampler(BatchSizes(12), 2, dp_rank=1, dp_size=3))]
    )
    assert np.array_equal(second, dataset.samples(np.arange(28, 32))[:, :-1])


def test_what_cannot_be_divided_is_refused_at_the_call(dataset):
    with pytest.raises(
        UserError, match=r"train.global_batch_size = 10: .* micro_batch_size 2 x data-parallel size 2.*nearest: 8"
    ):
        global_batch(dataset, 0, BatchSampler(BatchSizes(10), 2, 0, 2))
    with pytest.raises(UserError, match="do not fit"):
        eval_batches(dataset, 1000, 4, 0, 1)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Documents of 1 to 39 tokens, whose ids are their numbers."""
    prefix, lengths = tmp_path_factory.mktemp("documents") / "train", np.tile(np.arange(1, 40), 5)
    np.repeat(np.arange(len(lengths), dtype=np.uint16), lengths).tofile(bin_path(prefix))
    write_index(idx_path(prefix), lengths, np.dtype(np.uint16))
    return TokenDataset(prefix, seq_len=32, seed=3)


class TestDocuments:
    @staticmethod
    def check(batches, counted_sequences):
        """Check lengths and weights against the ids, over the micro-batches of all ranks."""
        tokens, labels = (torch.cat([batch[i] for batch in batches]) for i in range(2))
        weights = torch.cat([batch.documents.weights for batch in batches])
        counted = (tokens == labels)[:counted_sequences]
        scale = counted.numel() / int(counted.sum())
        assert scale > 1.02
        torch.testing.assert_close(weights, (tokens == labels) * scale, rtol=1e-6, atol=0)
        lengths = [pieces.tolist() for batch in batches for pieces in batch.documents.lengths]
        assert lengths == [row.unique_consecutive(return_counts=True)[1].tolist() for row in tokens]

    @pytest.mark.parametrize(("micro_batch_size", "dp_size"), [(12, 1), (3, 2), (2, 3)])
    def test_of_a_step(self, packed, micro_batch_size, dp_size):
        for step in (0, 7):
            samplers = [BatchSampler(BatchSizes(12), micro_batch_size, rank, dp_size) for rank in range(dp_size)]
            self.check([batch for each in samplers for batch in global_batch(packed, step, each, isolate=True)], 12)

    @pytest.mark.parametrize(("micro_batch_size", "dp_size"), [(4, 1), (2, 3)])
    def test_of_an_evaluation(self, packed, micro_batch_size, dp_size):
        ranks = [eval_batches(packed, 10, micro_batch_size, rank, dp_size, isolate=True) for rank in range(dp_size)]
        self.check([batch for batches, _ in ranks for batch in batches], 10)

    def test_they_are_not_told_where_they_flow(self, packed):
        assert all(batch.documents is None for batch in global_batch(packed, 0, BatchSampler(BatchSizes(12), 3, 0, 1)))
