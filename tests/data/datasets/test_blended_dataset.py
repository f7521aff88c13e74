"""A blend gives the samples of its sources, in proportion, in any layout and from any step."""

import numpy as np
import pytest
import torch

from hybridtron.data.datasets.blended_dataset import BlendedDataset, Stage
from hybridtron.data.datasets.indexed_dataset import bin_path, idx_path, write_index
from hybridtron.data.datasets.token_dataset import TokenDataset
from hybridtron.data.loaders.batch_sizes import BatchSizes
from hybridtron.data.loaders.batches import global_batch
from hybridtron.data.loaders.loader import make_loader
from hybridtron.data.loaders.sampler import BatchSampler
from hybridtron.errors import UserError

WEIGHTS = (0.7, 0.2, 0.1)
STAGES = (Stage(0, WEIGHTS), Stage(100, (0, 0.5, 0.5)), Stage(130, (1, 0, 0)), Stage(5000, (1, 1, 1)))


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Three sources whose tokens say which they are: those of source j begin at 10,000 j."""
    folder, found = tmp_path_factory.mktemp("sources"), []
    for number, (size, lengths) in enumerate([(5000, [2000, 3000]), (3000, [100] * 30), (900, [900])]):
        prefix = folder / f"source{number}"
        np.arange(10_000 * number, 10_000 * number + size, dtype=np.uint16).tofile(bin_path(prefix))
        write_index(idx_path(prefix), np.array(lengths), np.dtype(np.uint16))
        found.append(TokenDataset(prefix, seq_len=32, seed=3))
    return found


def test_every_source_gives_its_samples_in_its_own_order(sources):
    blend = BlendedDataset(sources, STAGES[:1])
    samples = blend.samples(np.arange(10_000))
    source = samples[:, 0] // 10_000
    assert np.bincount(source).tolist() == [7000, 2000, 1000]
    for number, dataset in enumerate(sources):
        here = source == number
        assert np.array_equal(samples[here], dataset.samples(np.arange(int(here.sum()))))
        share = np.arange(1, 10_001) * WEIGHTS[number]
        assert np.abs(np.cumsum(here) - share).max() < 1 + 1e-9


@pytest.mark.parametrize(("micro_batch_size", "dp_size"), [(12, 1), (3, 2), (1, 4)])
def test_the_ranks_of_any_layout_read_the_global_order(sources, micro_batch_size, dp_size):
    blend = BlendedDataset(sources, STAGES)
    for step in (0, 8, 11, 416, 10_000):
        samplers = [BatchSampler(BatchSizes(12), micro_batch_size, rank, dp_size) for rank in range(dp_size)]
        tokens = [batch.tokens for sampler in samplers for batch in global_batch(blend, step, sampler)]
        assert np.array_equal(torch.cat(tokens), blend.samples(np.arange(step * 12, step * 12 + 12))[:, :-1])


def test_stages_are_exact_and_no_source_begins_again(sources):
    blend = BlendedDataset(sources, STAGES)
    indices = np.arange(6000)
    chosen, places = blend.locate(indices)
    for number in range(3):
        assert np.array_equal(places[chosen == number], np.arange(int((chosen == number).sum())))
    for stage, stop in zip(STAGES, (100, 130, 5000, 6000), strict=True):
        inside = np.eye(3)[chosen[stage.start : stop]].cumsum(axis=0)
        shares = np.array(stage.weights) / sum(stage.weights)
        assert np.abs(inside - np.arange(1, stop - stage.start + 1)[:, None] * shares).max() < 1 + 1e-9
    for number in (0, 1, 99, 100, 101, 130, 4999, 5000, 5999):
        assert blend.counts(number).tolist() == np.bincount(chosen[:number], minlength=3).tolist()
    for index in (99, 100, 129, 130, 5000):
        assert [int(found[0]) for found in blend.locate([index])] == [chosen[index], places[index]]


def test_documents_are_those_of_the_source(sources):
    blend = BlendedDataset(sources, STAGES)
    indices = np.array([0, 105, 1, 5003])
    chosen, places = blend.locate(indices)
    for pieces, source, place in zip(blend.documents(indices), chosen, places, strict=True):
        assert np.array_equal(pieces, sources[source].documents([place])[0])


def test_a_blend_of_one_source_is_that_source(sources):
    for indices in (np.arange(500), np.array([10**6, 3])):
        blend = BlendedDataset(sources[:1], [Stage(0, (0.3,))])
        assert np.array_equal(blend.samples(indices), sources[0].samples(indices))


def test_another_source_changes_no_sources_own_order(sources):
    two, three = BlendedDataset(sources[:2], [Stage(0, (1, 1))]), BlendedDataset(sources, [Stage(0, (1, 1, 1))])
    firsts = [blend.samples(np.arange(60)) for blend in (two, three)]
    of_second = [samples[samples[:, 0] // 10_000 == 1][:20] for samples in firsts]
    assert np.array_equal(*of_second)


def test_dali_reads_a_blend(sources):
    pytest.importorskip("nvidia.dali")
    blend, sampler = BlendedDataset(sources, STAGES), BatchSampler(BatchSizes(12), 3, 1, 2)
    load_batches = make_loader("dali", blend, sampler, torch.device("cpu"))
    for step in (7, 8, 9, 416):
        for ours, theirs in zip(global_batch(blend, step, sampler), load_batches(step), strict=True):
            assert torch.equal(ours.tokens, theirs.tokens)


def test_a_token_outside_the_vocabulary_names_its_source(sources):
    with pytest.raises(UserError, match=r"model.vocab_size = 11000: .*source1.* holds token id 12999"):
        BlendedDataset(sources, STAGES).check_vocab(11_000)
