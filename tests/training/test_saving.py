"""Which checkpoints stay, and what cannot become one."""

import pytest

import hybridtron as ht
from hybridtron.distributed.checkpoint import writing
from hybridtron.training.run_folder.folder import RunFolder
from hybridtron.training.saving import TrainingStopped


def kept(run):
    return [int(path.name.removeprefix("step_")) for path in RunFolder(run.folder).checkpoints()]


def test_checkpoints_at_multiples_are_saved_and_kept(tiny):
    section = ("checkpoint.save_every=2", "checkpoint.keep_last=2", "checkpoint.keep_every=5")
    assert kept(ht.train(tiny, "train.steps=14", *section)) == [5, 10, 12, 14]


def test_a_model_that_cannot_be_saved_is_refused_before_its_first_step(tiny, monkeypatch):
    declared = writing.owned_chunks
    monkeypatch.setattr(writing, "owned_chunks", lambda engine: 2 * declared(engine))
    with pytest.raises(TrainingStopped, match="no checkpoint of this model can be written"):
        ht.train(tiny)
    assert (tiny.parent / "run" / "metrics.jsonl").read_text() == ""
