"""Which checkpoints stay."""

import hybridtron as ht
from hybridtron.training.run_folder.folder import RunFolder


def kept(run):
    return [int(path.name.removeprefix("step_")) for path in RunFolder(run.folder).checkpoints()]


def test_checkpoints_at_multiples_are_saved_and_kept(tiny):
    section = ("checkpoint.save_every=2", "checkpoint.keep_last=2", "checkpoint.keep_every=5")
    assert kept(ht.train(tiny, "train.steps=14", *section)) == [5, 10, 12, 14]
