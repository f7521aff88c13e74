"""train.cuda_graphs in whole runs, with tapes in place of CUDA graphs; what it refuses, and what it says on a CPU."""

import json

import pytest

import hybridtron as ht
from hybridtron.cli.main import main
from hybridtron.distributed.recorded_passes import RecordedPasses
from tests.distributed.tape import tapes_for_graphs, without_c_kernels

EVERYTHING = [
    "train.steps=8", "train.batch_warmup=[{steps: 3, global_batch_size: 2}]", "train.eval_every=3",
    "train.layer_statistics_every=4", "optimizer.ema={decay: 0.9}", "checkpoint.save_every=5",
    "schedule.warmup_steps=2",
]  # fmt: skip
MEASURED = ("time", "tokens_per_s", "flops_per_s", "mfu")


class StopAfter(ht.Callback):
    """Stop training after a step."""

    def __init__(self, step):
        self.step = step

    def after_step(self, context, row, logged):
        if context.state.step == self.step:
            raise ht.StopTraining("enough")


@pytest.fixture
def replays(monkeypatch):
    """The number of micro-batches of every replayed step."""
    counts, run = [], RecordedPasses.run

    def counted(self, micro_batches, is_watched=False):
        before = self.replays
        losses = run(self, micro_batches, is_watched)
        counts.extend([len(micro_batches)] * (self.replays - before))
        return losses

    monkeypatch.setattr(RecordedPasses, "run", counted)
    return counts


def rows(folder, name="metrics.jsonl"):
    found = [json.loads(line) for line in (folder / name).read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in MEASURED} for row in found]


def test_a_run_with_everything_around_its_steps_is_that_without(tiny, tmp_path, replays):
    """Evaluations, an average of weights, checkpoints, a resumption, a profile, and growing batches."""
    runs = {}
    for name in ("plain", "recorded"):
        options = [*EVERYTHING, f"folder={tmp_path / name}", f"train.cuda_graphs={str(name == 'recorded').lower()}"]
        with without_c_kernels() if name == "plain" else tapes_for_graphs():
            ht.train(tiny, *options, callbacks=[StopAfter(5)])
            done = ht.train(tiny, *options, resume=True, profile=True, profile_steps="7-7")
        runs[name] = (rows(done.folder), rows(done.folder, "layer_statistics.jsonl"))
    assert runs["recorded"] == runs["plain"]
    assert len(runs["recorded"][0]) == 8
    assert replays == [1, 1, 1, 2, 2]  # step 4 and 8 have statistics, 7 is profiled
    table = json.loads((tmp_path / "recorded" / "profile" / "table.json").read_text())
    assert "backward: mamba" in {each["part"] for each in table["parts"]}


def test_on_a_cpu_it_says_that_it_does_nothing(tiny, capsys):
    assert main(["train", str(tiny), "train.cuda_graphs=true", "train.steps=1", "schedule.warmup_steps=1"]) == 0
    assert capsys.readouterr().err.count("train.cuda_graphs: there is no GPU; steps run as without it\n") == 1


REFUSED = {
    "parallel.tensor=2": "parallel.tensor = 2: expected 1, or train.cuda_graphs false",
    "parallel.context=2": "parallel.context = 2: expected 1, or train.cuda_graphs false",
    "parallel.pipeline=2": "parallel.pipeline = 2: expected 1, or train.cuda_graphs false",
    "parallel.overlap_grad_reduce=true": "parallel.overlap_grad_reduce = true: expected false, or train.cuda_graphs",
    "parallel.cpu_offload_layers=1": "parallel.cpu_offload_layers = 1: expected 0, or train.cuda_graphs false",
    "train.compile=true": "train.compile = true: expected false, or train.cuda_graphs false",
    "data.documents=isolate": "data.documents = isolate: expected flow, or train.cuda_graphs false",
    "precision={format: fp8, skip: [mamba.in_proj]}": "precision.emulate = false: expected true, or train.cuda_graphs",
    "model.blocks.ffn={type: moe, num_experts: 2, ffn_hidden_size: 16}":
        "train.cuda_graphs = true: block ffn of type moe has experts",
}  # fmt: skip


@pytest.mark.parametrize("override", REFUSED)
def test_what_cannot_be_recorded_is_refused_in_one_line(override, tiny, capsys):
    assert main(["train", str(tiny), "train.cuda_graphs=true", override, "--nproc", "2"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"hybridtron: error: {REFUSED[override]}")
    assert not (tiny.parent / "run").exists()


def test_all_that_cannot_be_recorded_is_named_at_once(tiny, capsys):
    beside = ["parallel.tensor=2", "parallel.overlap_grad_reduce=true"]
    assert main(["train", str(tiny), "train.cuda_graphs=true", *beside, "--nproc", "2"]) == 2
    assert [line.split(" = ")[0] for line in capsys.readouterr().err.splitlines()] == [
        "hybridtron: error: parallel.tensor",
        "parallel.overlap_grad_reduce",
    ]


def test_emulated_fp8_and_data_parallelism_are_accepted(tiny, capsys):
    fp8 = "precision={format: fp8, emulate: true, skip: [mamba.in_proj]}"
    assert main(["train", str(tiny), "train.cuda_graphs=true", fp8, "--nproc", "2", "--print"]) == 0
