"""Weights & Biases is asked for by a config key, and only then needed."""

from __future__ import annotations

import json
import shutil
import struct

import pytest
import wandb
from wandb.proto.wandb_internal_pb2 import Record

from hybridtron.config.load import load
from hybridtron.distributed.process_groups.environment import read_environment
from hybridtron.errors import UserError
from hybridtron.training.config import RunConfig
from hybridtron.training.run import train
from hybridtron.training.validation.resolve import resolve

BLOCK = 32768


def resolved(tiny, *overrides):
    return resolve(load(tiny, ["schedule.warmup_steps=1", *overrides], RunConfig))


def test_a_missing_package_is_named_before_anything_is_written(tiny, monkeypatch):
    monkeypatch.setattr("hybridtron.training.callbacks.wandb.find_spec", lambda name: None)
    config = resolved(tiny, "train.wandb=scaling")
    with pytest.raises(UserError, match=r"train\.wandb = scaling: .* not installed.*hybridtron\[wandb\]"):
        train(config, read_environment())
    assert not config.run_folder.exists()


def records(file):
    """Read a file of Weights & Biases: after seven bytes, records in blocks of 32 KiB, as in LevelDB's log format."""
    content, at, whole = file.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if BLOCK - at % BLOCK < 7:  # no header fits here
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield Record.FromString(whole)
            whole = b""


@pytest.fixture
def offline(monkeypatch):
    """Let wandb write to disk alone, and end its service and threads in the end."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    yield
    wandb.teardown()


def take(folder):
    """Return what a run has written for a later `wandb sync`, and delete it: its names tell seconds of the clock."""
    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    found = list(records(file))
    shutil.rmtree(folder / "wandb")
    return found


def test_a_resumed_run_continues_its_own_run_there(tiny, offline):
    run = train(resolved(tiny, "train.wandb=scaling", "train.steps=2", "train.eval_every=2"), read_environment())
    found = [take(run.folder)]
    train(resolved(tiny, "train.wandb=scaling", "train.steps=3"), read_environment(), resume=True)
    found.append(take(run.folder))
    (first, opened), (_, resumed) = ((each, next(r.run for r in each if r.HasField("run"))) for each in found)
    assert [(o.project, o.display_name) for o in (opened, resumed)] == [("scaling", "tiny")] * 2
    assert [config(o)["train"]["steps"] for o in (opened, resumed)] == [2, 3]
    assert opened.run_id == resumed.run_id == (run.folder / "wandb_id").read_text()
    assert [row["_step"] for each in found for row in history(each)] == [1, 2, 3]
    for row, written in zip(history(first), run.metrics[:2], strict=True):
        numbers = {key for key, value in written.items() if value is not None} - {"step", "time"}
        assert {key: row[key] for key in numbers} == {key: written[key] for key in numbers}
    assert "valid_loss" in history(first)[1]
    assert [sum(r.HasField("exit") for r in each) for each in found] == [1, 1]


def config(run):
    return {item.key: json.loads(item.value_json) for item in run.config.update}


def history(found):
    """Return the rows that were logged."""
    rows = [r.history.item for r in found if r.HasField("history")]
    return [{item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in row} for row in rows]


def test_a_machine_without_an_account_is_told_of_offline_mode(tiny, monkeypatch):
    def init(**arguments):
        raise wandb.errors.UsageError("No API key configured.\nUse `wandb login`")

    monkeypatch.setattr(wandb, "init", init)
    message = (
        r"train\.wandb = scaling: No API key configured\. Use `wandb login` \(WANDB_MODE=offline needs no account\)"
    )
    with pytest.raises(UserError, match=message):
        train(resolved(tiny, "train.wandb=scaling"), read_environment())
