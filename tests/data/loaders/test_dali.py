"""DALI reads what the memory-mapped loader reads, in the same order, from any step, for any number of ranks."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from hybridtron.config.load import load
from hybridtron.data.datasets.indexed_dataset import bin_path, idx_path, write_index
from hybridtron.data.datasets.token_dataset import TokenDataset
from hybridtron.data.loaders import dali
from hybridtron.data.loaders.batch_sizes import BatchSizes
from hybridtron.data.loaders.batches import global_batch
from hybridtron.data.loaders.loader import make_loader
from hybridtron.data.loaders.sampler import BatchSampler
from hybridtron.distributed.process_groups.environment import read_environment
from hybridtron.errors import UserError
from hybridtron.training.config import RunConfig
from hybridtron.training.corpus import open_corpus
from hybridtron.training.run import train
from hybridtron.training.validation.resolve import resolve
from tests.conftest import environment
from tests.warm import run as run_warm

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    prefix = tmp_path_factory.mktemp("tokens") / "train"
    np.arange(5000, dtype=np.uint16).tofile(bin_path(prefix))
    write_index(idx_path(prefix), np.array([4000, 7, 60, 1, 932]), np.dtype(np.uint16))
    return TokenDataset(prefix, seq_len=32, seed=3)


@pytest.mark.parametrize(("micro_batch_size", "dp_size"), [(3, 1), (2, 2), (3, 4)])
def test_the_same_batches_in_the_same_order(dataset, micro_batch_size, dp_size):
    """Each rank goes on from step to step, as in training, begins at a later step, as on resume, and goes back."""
    for rank in range(dp_size):
        sampler = BatchSampler(BatchSizes(12), micro_batch_size, rank, dp_size)
        load_batches = make_loader("dali", dataset, sampler, CPU)
        for step in (0, 1, 2, 3, 40, 41, 1):
            expected, found = list(global_batch(dataset, step, sampler)), load_batches(step)
            assert len(found) == len(expected)
            for ours, theirs in zip(expected, found, strict=True):
                assert torch.equal(ours.tokens, theirs.tokens)
                assert torch.equal(ours.labels, theirs.labels)
                assert theirs.tokens.dtype == torch.int64
                assert theirs.tokens.is_contiguous()


def test_the_same_documents(dataset):
    sampler = BatchSampler(BatchSizes(12), 3, 1, 2)
    for step in (0, 1, 7):
        load_batches = make_loader("dali", dataset, sampler, CPU, isolate=True)
        for ours, theirs in zip(global_batch(dataset, step, sampler, isolate=True), load_batches(step), strict=True):
            assert torch.equal(ours.tokens, theirs.tokens)
            assert torch.equal(ours.documents.weights, theirs.documents.weights)
            assert list(map(list, ours.documents.lengths)) == list(map(list, theirs.documents.lengths))


def test_batches_stay_as_they_are_while_later_ones_are_read(dataset):
    sampler = BatchSampler(BatchSizes(12), 3, 0, 1)
    load_batches = make_loader("dali", dataset, sampler, CPU)
    first = load_batches(0)
    for step in range(1, 10):
        load_batches(step)
    for ours, theirs in zip(global_batch(dataset, 0, sampler), first, strict=True):
        assert torch.equal(ours.tokens, theirs.tokens)


def test_errors_of_the_data_and_the_layout_are_ours(dataset):
    with pytest.raises(UserError, match=r"train.global_batch_size = 10: .*nearest: 8"):
        make_loader("dali", dataset, BatchSampler(BatchSizes(10), 2, 0, 2), CPU)
    wrong = TokenDataset(dataset.prefix, seq_len=32, seed=3)
    wrong._vocab_size = 10
    with pytest.raises(UserError, match=r"model.vocab_size = 10: is too small"):
        make_loader("dali", wrong, BatchSampler(BatchSizes(12), 3, 0, 1), CPU)(0)


def losses(run):
    return [row["step_loss"] for row in run.metrics]


def test_training_has_the_same_losses_also_where_it_is_resumed_and_changes_its_loader(tiny, tmp_path):
    def run(name, steps, loader, resume=False):
        keys = [f"folder={tmp_path / name}", f"train.steps={steps}", f"data.loader={loader}", "schedule.type=constant"]
        return train(resolve(load(tiny, keys, RunConfig)), read_environment(), resume)

    expected = losses(run("mmap", 8, "mmap"))
    run("dali", 4, "dali")
    run("dali", 6, "dali", resume=True)
    assert losses(run("dali", 8, "mmap", resume=True)) == expected


@pytest.mark.parametrize("found", [None, ModuleNotFoundError("No module named 'nvidia'")])
def test_without_dali_the_extra_is_named_before_data_is_read(tiny, monkeypatch, found):
    def find_spec(name):
        if found:
            raise found

    monkeypatch.setattr(dali, "find_spec", find_spec)
    config = load(tiny, ["data.loader=dali", "data.train=missing"], RunConfig)
    with pytest.raises(
        UserError,
        match=r"^data.loader = dali: NVIDIA DALI is not installed; expected it \(pip install 'hybridtron\[dali\]'\), "
        "or mmap$",
    ):
        open_corpus(config)


def test_dali_is_imported_only_where_it_is_used(tiny, tmp_path):
    code = (
        "import sys; from hybridtron.cli.main import main; "
        f"status = main(['train', {str(tiny)!r}, 'train.steps=1', 'schedule.warmup_steps=0']); "
        "sys.exit(status or any(name.startswith('nvidia.dali') for name in sys.modules))"
    )
    assert run_warm([sys.executable, "-c", code], cwd=tmp_path, env=environment()).returncode == 0
