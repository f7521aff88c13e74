"""--profile: what is written, whether the parts are right, and that nothing is left outside the profiled steps."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from megatron.core.distributed import DistributedDataParallel

from hybridtron.config.load import load
from hybridtron.distributed.engine import Engine
from hybridtron.distributed.process_groups.environment import read_environment
from hybridtron.mixers.attention.module import Attention
from hybridtron.training import loop
from hybridtron.training.callbacks import Callback
from hybridtron.training.checkpointing.saver import Saver
from hybridtron.training.config import RunConfig
from hybridtron.training.profiling import clock
from hybridtron.training.run import train
from hybridtron.training.validation.resolve import resolve

LAYERS = ("mamba", "mlp", "attn", "ffn")
PASSES = [f"{way}: {part}" for way in ("forward", "backward") for part in (*LAYERS, "embedding", "output and loss")]


def run(tiny, *overrides, **arguments):
    config = resolve(load(tiny, ["schedule.warmup_steps=1", "train.steps=5", *overrides], RunConfig))
    return train(config, read_environment(), **arguments)


class Hooks(Callback):
    """Keep the number of hooks of the model when each step is done."""

    def __init__(self):
        self.counts = []

    def after_step(self, context, row, logged):
        modules = [module for chunk in context.chunks for module in chunk.modules()]
        self.counts.append(sum(len(each._forward_hooks) + len(each._forward_pre_hooks) for each in modules))


def test_a_profiled_run(tiny, tmp_path):
    hooks = Hooks()
    profiled = run(tiny, callbacks=[hooks], profile=True, profile_steps="2-3")
    assert hooks.counts == [0, 10, 10, 0, 0]  # of four layers and the embedding
    table = json.loads((profiled.folder / "profile" / "table.json").read_text())
    assert (table["first_step"], table["last_step"], table["device"], table["processes"]) == (2, 3, "CPU", 1)
    parts = {each["part"]: each["seconds"] for each in table["parts"]}
    assert {*PASSES, "data", "gradient reduction", "optimizer", "save", "other"} == parts.keys()
    assert min(parts.values()) > 0
    assert sum(parts.values()) == pytest.approx(table["seconds_per_step"])
    assert sum(each["share"] for each in table["parts"]) == pytest.approx(1)
    events = json.loads(gzip.decompress((profiled.folder / "profile" / "trace.json.gz").read_bytes()))["traceEvents"]
    ranges = Counter(event["name"] for event in events if event.get("cat") == "user_annotation")
    assert ranges["forward: layer 2, attn"] == ranges["forward: embedding"] == 2 * 2  # steps x micro-batches
    assert ranges["data"] == ranges["optimizer"] == 2
    assert any(event["name"] == "aten::mm" for event in events)

    plain = run(tiny, f"folder={tmp_path / 'plain'}")
    assert [row["step_loss"] for row in profiled.metrics] == [row["step_loss"] for row in plain.metrics]
    assert not (plain.folder / "profile").exists()


class Passes(torch.autograd.Function):
    """The identity, whose backward pass lets time pass."""

    @staticmethod
    def forward(ctx, x, advance):
        ctx.advance = advance
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        ctx.advance()
        return gradient, None


def test_each_part_gets_its_own_time(tiny, monkeypatch):
    """Time stands still but where a part is made to take some."""
    now = [0.0]
    monkeypatch.setattr(clock, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def slow(owner, name, seconds):
        function = getattr(owner, name)

        def call(*arguments, **keywords):
            now[0] += seconds
            return function(*arguments, **keywords)

        monkeypatch.setattr(owner, name, call)

    def advance():
        now[0] += 2.0

    project_out = Attention.project_out
    monkeypatch.setattr(Attention, "project_out", lambda self, y: project_out(self, Passes.apply(y, advance)))
    slow(Attention, "project_in", 3.0)
    slow(Engine, "_forward", 5.0)
    slow(DistributedDataParallel, "finish_grad_sync", 7.0)
    slow(Engine, "agree", 11.0)
    slow(Saver, "poll", 13.0)
    slow(Callback, "before_step", 17.0)
    slow(Engine, "evaluate", 19.0)
    make_loader = loop.make_loader

    def make_slow_loader(*arguments):
        load_batches = make_loader(*arguments)

        def read(step):
            now[0] += 23.0
            return load_batches(step)

        return read

    monkeypatch.setattr(loop, "make_loader", make_slow_loader)
    done = run(tiny, "train.eval_every=3", profile=True, profile_steps="3-4")
    table = json.loads((done.folder / "profile" / "table.json").read_text())
    others = len(("progress", "report", "attempts", "metrics", "tensorboard", "plot"))
    assert {each["part"]: each["seconds"] for each in table["parts"] if each["seconds"]} == {
        "data": 23.0,
        "forward: attn": 2 * 3.0,
        "forward: output and loss": 2 * 5.0,
        "backward: attn": 2 * 2.0,
        "gradient reduction": 7.0,
        "optimizer": 11.0,
        "save": 13.0,
        "other": 17.0 * others,
        "evaluation": 19.0 / 2 + 4 * (5.0 + 3.0) / 2,  # of one of the two steps, with four micro-batches
    }


def test_the_command_profiles_the_first_of_two_processes(tiny, hybridtron, tmp_path):
    done = hybridtron("train", tiny, "train.steps=4", "--nproc", 2, "--profile", "schedule.warmup_steps=1")
    assert done.returncode == 0, done.stderr
    assert "steps 2 to 4, profiled on CPU: " in done.stderr
    assert "gradient reduction" in done.stderr
    table = json.loads((tmp_path / "run" / "profile" / "table.json").read_text())
    assert table["processes"] == 2


def test_steps_that_are_not_trained_start_no_process(tiny, hybridtron, tmp_path):
    done = hybridtron("train", tiny, "--nproc", 2, "--profile-steps", "20-21")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "hybridtron: error: --profile-steps = 20-21: expected steps that are trained, from 1 to 20\n"
    )
    assert not (tmp_path / "run").exists()
