"""Which checkpoints stay, and how they are written while training goes on; and what cannot become one."""

import signal
import sys
import threading

import pytest

import hybridtron as ht
from hybridtron.distributed.checkpoint import CheckpointWriter, manifest, writing
from hybridtron.errors import TrainingStopped
from hybridtron.training.run_folder.folder import RunFolder
from hybridtron.training.run_folder.train_state import read_state
from tests import warm
from tests.conftest import environment


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


class Watch(ht.Callback):
    """Note after which step each checkpoint was complete, and let something happen before a step."""

    def __init__(self, before=lambda step: None):
        self.saved, self.before = [], before

    def before_step(self, context):
        self.before(context.state.step)

    def on_save(self, context, checkpoint):
        assert (context.folder.path / "latest").read_text() == checkpoint.name + "\n"
        self.saved.append((int(checkpoint.name.removeprefix("step_")), context.state.step))


def test_training_goes_on_while_a_checkpoint_is_written(tiny, monkeypatch):
    """The disk waits for the fourth step to begin; the second save waits for the first, and the last is waited for."""
    third_step_done = threading.Event()
    write = CheckpointWriter.write

    def slow(writer, folder):
        assert third_step_done.wait(timeout=240)
        return write(writer, folder)

    monkeypatch.setattr(CheckpointWriter, "write", slow)
    watch = Watch(lambda step: third_step_done.set() if step == 3 else None)
    run = ht.train(tiny, "train.steps=5", "checkpoint.save_every=2", "checkpoint.keep_last=0", callbacks=[watch])
    assert [step for step, _ in watch.saved] == kept(run) == [2, 4, 5]
    assert watch.saved[0][1] in (3, 4)
    assert watch.saved[-1] == (5, 5)


def test_what_is_saved_is_the_step_of_the_save(tiny, tmp_path, monkeypatch):
    """However late it is written."""
    keys = ("train.steps=4", "checkpoint.save_every=2", "checkpoint.keep_last=0")
    ht.train(tiny, *keys, "checkpoint.asynchronous=false", f"folder={tmp_path / 'at_once'}")
    step_4 = threading.Event()
    write = CheckpointWriter.write
    monkeypatch.setattr(CheckpointWriter, "write", lambda *each: step_4.wait(timeout=240) and write(*each))
    ht.train(tiny, *keys, callbacks=[Watch(lambda step: step_4.set() if step == 3 else None)])
    for name in ("step_00000002", "step_00000004"):
        file = f"{name}/__0_0.distcp"
        assert (tmp_path / "run" / file).read_bytes() == (tmp_path / "at_once" / file).read_bytes()


@pytest.mark.parametrize("name", ["write", "complete"])
def test_a_failure_in_the_background_costs_that_checkpoint_alone(name, tiny, monkeypatch, capsys):
    """A reason that nobody thought of, too."""
    original = getattr(CheckpointWriter, name)

    def fails(writer, folder, *arguments):
        if "step_00000004" in folder.name:
            raise ValueError("a reason")
        return original(writer, folder, *arguments)

    monkeypatch.setattr(CheckpointWriter, name, fails)
    run = ht.train(tiny, "train.steps=6", "checkpoint.save_every=2", "checkpoint.keep_last=0")
    assert capsys.readouterr().err.count("step 4: the checkpoint was not saved: a reason; training goes on") == 1
    assert kept(run) == [2, 6]
    assert not list(run.folder.glob("*.partial*"))


@pytest.mark.parametrize("operation", [1, 12, 20, 26])
def test_a_run_killed_in_a_save_leaves_a_whole_checkpoint(operation, tiny):
    """In the save at step 4, before one of its operations on files."""
    code = """
import os, signal, sys
import hybridtron as ht
from hybridtron.training.checkpointing.saver import Saver
operations, left = {"open", "os.rename", "os.mkdir", "os.rmdir", "os.remove"}, None
def watch(event, arguments):
    global left
    if left is not None and event in operations and "run" in str(arguments[0]):
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
def begin(self, state, is_last, save=Saver.save):
    global left
    self.finish()
    if state.step == 4:
        left = int(sys.argv[1])
    save(self, state, is_last)
Saver.save = begin
sys.addaudithook(watch)
ht.train(*sys.argv[2:])
"""
    keys = ("train.steps=6", "checkpoint.save_every=2", "checkpoint.keep_last=1")
    done = warm.run([sys.executable, "-c", code, str(operation), tiny, *keys], env=environment())
    assert done.returncode == -signal.SIGKILL
    checkpoint = RunFolder(tiny.parent / "run").latest_checkpoint()
    manifest.verify(checkpoint)
    assert read_state(checkpoint).step == int(checkpoint.name.removeprefix("step_")) <= 4
