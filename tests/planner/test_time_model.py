"""Plans by measured times: stages add up their layers' rows, and what the table lacks is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import hybridtron as ht
from hybridtron.accounting.describe import describe
from hybridtron.api.configs import read_training_config
from hybridtron.cli.main import main
from hybridtron.efficiency.report.page import layer_table
from hybridtron.planner.time_model import read_layer_times

SEQ_LEN, BATCH = 32, 2
CONFIG = {
    "name": "x",
    "model": {
        "hidden_size": 32,
        "vocab_size": 258,
        "pattern": "2*attn 4*mlp",
        "blocks": {
            "attn": {"type": "attention", "num_heads": 4},
            "mlp": {"type": "swiglu", "ffn_hidden_size": 64},
        },
    },
    "data": {"train": "none", "seq_len": SEQ_LEN, "tokenizer": "byte"},
    "train": {"steps": 1, "global_batch_size": 16, "micro_batch_size": BATCH},
    "optimizer": {"lr": 1e-3},
    "precision": {"format": "fp32"},
}
ACCOUNT = describe(read_training_config(CONFIG).model, SEQ_LEN)
SIZES = {layer.block: layer.parameters for layer in ACCOUNT.layers}
SIZES["embedding and output"] = ACCOUNT.total - sum(layer.parameters for layer in ACCOUNT.layers)


@pytest.fixture
def written(tmp_path):
    """Write a table of rows (layer, length, batch, forward and backward milliseconds)."""

    def write(*rows: tuple[str, int, int, float], column: str = "forward_backward_ms", **sizes: int) -> str:
        lines = [f"layer,length,batch,parameters,{column}"]
        lines += [f"{name},{length},{batch},{(SIZES | sizes)[name]},{ms}" for name, length, batch, ms in rows]
        path = tmp_path / "layers.csv"
        path.write_text("\n".join(lines))
        return str(path)

    return write


ALL = [("attn", SEQ_LEN, BATCH, 5.0), ("mlp", SEQ_LEN, BATCH, 1.0), ("embedding and output", SEQ_LEN, BATCH, 2.0)]


def planned(table: str | None, *overrides: str, gpus: int = 2, **options):
    return ht.plan(CONFIG, "parallel.pipeline=2", *overrides, gpus=gpus, table=table, **options)


def test_a_stage_takes_the_sum_of_its_layers(written):
    made = planned(written(*ALL), "model.pattern=2*attn mlp | 3*mlp")
    first, last = made.time.stages_ms
    assert first + last == pytest.approx(2 * 5 + 4 * 1 + 2)
    assert 11 <= first < 11.2  # a row of the embedding is next to nothing beside the output projection
    assert made.imbalance == pytest.approx(first / ((first + last) / 2) - 1)
    assert made.time.step_seconds == pytest.approx(first * (made.micro_batches + 1) / 1000)
    assert made.time.remarks == []


def test_cuts_that_balance_the_measured_times_are_named(written):
    made = planned(written(*ALL), "model.pattern=2*attn mlp | 3*mlp")
    assert made.time.pattern == "2*attn | 4*mlp"
    better = planned(written(*ALL), f"model.pattern={made.time.pattern}")
    assert max(better.time.stages_ms) < max(made.time.stages_ms)
    assert better.time.pattern is None


def test_tensor_parallelism_divides_the_times(written):
    whole, halved = (planned(written(*ALL), *words, gpus=n) for words, n in (([], 2), (["parallel.tensor=2"], 4)))
    assert halved.time.stages_ms == pytest.approx([ms / 2 for ms in whole.time.stages_ms])


def test_another_length_or_batch_is_scaled_by_flops_with_a_word(written):
    rows = [("attn", SEQ_LEN, BATCH, 5.0), ("mlp", SEQ_LEN // 2, 1, 0.25), ("embedding and output", SEQ_LEN, 1, 1.0)]
    times = read_layer_times(read_training_config(CONFIG), Path(written(*rows)))
    assert times.layers == pytest.approx([5, 5, 1, 1, 1, 1])
    assert times.first + times.last == pytest.approx(2)
    assert times.remarks == [
        "mlp: measured at 16 x 1; scaled by FLOPs to 32 x 2",
        "embedding and output: measured at 32 x 1; scaled by FLOPs to 32 x 2",
    ]


def test_layers_that_were_not_measured_go_by_flops_at_the_rate_of_the_others(written):
    table = written(ALL[0], ALL[1], ALL[2], mlp=7)  # mlp of another width
    times = read_layer_times(read_training_config(CONFIG), Path(table))
    flops = {layer.block: layer.flops_per_token for layer in ACCOUNT.layers}
    assert times.layers[2:] == pytest.approx([5 * flops["mlp"] / flops["attn"]] * 4)
    assert times.remarks == ["mlp: not in the table at this width; by FLOPs, at the rate of the layers that are"]


def test_a_table_without_the_passes_serves_with_its_training_steps(written):
    times = read_layer_times(read_training_config(CONFIG), Path(written(*ALL, column="train_ms")))
    assert times.layers == [5, 5, 1, 1, 1, 1]
    assert times.remarks == [
        "forward_backward_ms is not in the table: train_ms, with the optimizer's part, stands for it"
    ]


def test_a_table_of_other_layers_is_refused(written):
    with pytest.raises(ht.UserError, match=r"table .*: has no layer of x at its widths; expected attn, mlp; it has"):
        planned(written(*ALL, attn=1, mlp=1))
    with pytest.raises(ht.UserError, match=r"table .*has no column .*expected layers\.csv of hybridtron efficiency"):
        planned(written(*ALL, column="seconds"))


def test_the_table_that_is_measured_serves_the_command(tmp_path, capsys):
    model = {key: CONFIG[key] for key in ("name", "model", "data", "precision")}
    measured = ht.measure_efficiency(
        [model], lengths=[SEQ_LEN], batch_sizes=[BATCH], repeats=1, by_block=True, threads=1
    )
    table = tmp_path / "layers.csv"
    table.write_text(layer_table(measured))
    config = tmp_path / "x.json"
    config.write_text(json.dumps(CONFIG))
    assert main(["plan", str(config), "parallel.pipeline=2", "--gpus", "2", "--table", str(table)]) == 0
    printed = capsys.readouterr().out
    assert "a step without communication and optimizer" in printed
    assert "FLOPs, at the rate" not in printed
    assert "scaled" not in printed
