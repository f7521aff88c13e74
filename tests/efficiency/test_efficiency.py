"""Measured efficiency: parts add up to models, rates follow from times, and the page says so."""

from __future__ import annotations

import csv
import json
import select
from collections import Counter
from dataclasses import replace

import pytest
import torch

import hybridtron as ht
from hybridtron.accounting.describe import describe
from hybridtron.api.configs import read_model_config
from hybridtron.cli.main import main
from hybridtron.efficiency.load import Load, LoadMeter
from hybridtron.efficiency.machine import Machine
from hybridtron.efficiency.measure import DECODED, _decode, measure_times, peak_bytes
from hybridtron.efficiency.parts import parts_of, whole_model
from hybridtron.efficiency.report.page import write_page
from hybridtron.efficiency.study import _floors, _ratio

CPU = torch.device("cpu")
ATTENTION, HYBRID = "2*(attn mlp)", "mamba mlp attn mlp"


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("efficiency") / "page"
    result = ht.measure_efficiency(
        [ATTENTION, HYBRID], lengths=[8, 16], batch_sizes=[1, 2], repeats=2, by_block=True, threads=1, out=folder
    )
    return result, folder


@pytest.mark.parametrize("tied", [True, False])
def test_the_parts_of_models_have_all_their_parameters(tied):
    configs = [read_model_config(pattern, f"model.tie_embeddings={tied}") for pattern in (ATTENTION, HYBRID)]
    parts, counts = parts_of(configs, CPU)
    for config, count in zip(configs, counts, strict=True):
        total = sum(n * parts[name].num_parameters for name, n in count.items())
        assert total == describe(config.model, 8).total


@pytest.mark.parametrize("residual", ["parallel", "sandwich", "hyper_connections", "attention_residuals"])
def test_parts_of_every_residual_topology_train_and_generate(residual):
    config = read_model_config(ATTENTION, f"model.residual.type={residual}")
    parts, (count,) = parts_of([config], CPU)
    assert sum(n * parts[name].num_parameters for name, n in count.items()) == describe(config.model, 8).total
    for part in parts.values():
        part.prepare(1, 8)
        part.train()
        part.prefill()
        part.make_room()
        part.decode()


def test_layers_that_models_share_are_measured_once():
    parts, counts = parts_of([read_model_config(pattern) for pattern in (ATTENTION, HYBRID)], CPU)
    assert sorted(part.name for part in parts.values()) == ["attn", "embedding and output", "mamba", "mlp"]
    assert [Counter({parts[key].name: n for key, n in count.items()}) for count in counts] == [
        {"attn": 2, "mlp": 2, "embedding and output": 1},
        {"attn": 1, "mlp": 2, "mamba": 1, "embedding and output": 1},
    ]


def test_a_block_of_another_shape_is_a_part_of_its_own():
    wide = read_model_config(ATTENTION, "model.blocks.mlp.ffn_hidden_size=64")
    parts, _ = parts_of([read_model_config(ATTENTION), wide], CPU)
    assert sorted(part.name for part in parts.values()) == ["attn", "embedding and output", "mlp", "mlp"]


class Read:
    """A part, or weights of others, that writes down when it is used."""

    device = CPU

    def __init__(self, events, word):
        self.decode = self.sum = lambda: events.append(word)

    def chunk(self, count):
        return [self] * count

    def __len__(self):
        return 1


def test_a_part_meets_the_caches_that_a_models_other_layers_leave():
    events = []
    _decode({name: Read(events, name) for name in ("attn", "mlp")}, Read(events, "others"))
    assert events == ["attn", "others", "mlp", "others"] * DECODED


@pytest.mark.parametrize("by_block", [True, False])
def test_the_other_weights_are_those_that_the_parts_leave_of_the_largest_model(monkeypatch, by_block):
    given = []

    def measure_once(*arguments):
        given.append(arguments[-1])
        return measure_times(*arguments[:3], 1)

    monkeypatch.setattr("hybridtron.efficiency.study.measure_times", measure_once)
    ht.measure_efficiency([ATTENTION, f"3*({HYBRID})"], lengths=[8], batch_sizes=[1], repeats=1, by_block=by_block)
    config = read_model_config(f"3*({HYBRID})")
    (parts, _), total = parts_of([config], CPU), describe(config.model, 8).total
    assert given == [total - sum(part.num_parameters for part in parts.values()) if by_block else 0]


def test_the_state_after_a_prompt_is_as_large_as_the_formula_says():
    config = read_model_config("attn mlp")
    part = whole_model(config, CPU)
    part.prepare(2, 96)
    part.prefill()
    part.make_room()
    assert part.state_bytes == describe(config.model, 96).state_bytes["fp32"]


def test_decoding_goes_on_from_the_prompt():
    part = whole_model(read_model_config(HYBRID), CPU)
    part.prepare(2, 12)
    part.prefill()
    logits, _ = part.model.step(part.tokens[:, -1], part.state)
    torch.testing.assert_close(logits, part.model.logits(part.tokens)[:, -1], atol=1e-5, rtol=1e-4)


def test_training_a_part_changes_its_parameters():
    parts, _ = parts_of([read_model_config(HYBRID)], CPU)
    for part in parts.values():
        part.prepare(1, 8)
        before = {name: value.clone() for name, value in part.model.named_parameters()}
        part.train()
        changed = {name for name, value in part.model.named_parameters() if not torch.equal(value, before[name])}
        assert changed == set(before)


def test_there_is_a_row_for_every_model_length_and_batch(measured):
    rows = measured[0].rates
    expected = {(m, s, b) for m in measured[0].models for s in (8, 16) for b in (1, 2)}
    assert {(row.model, row.length, row.batch) for row in rows} == expected
    assert len(rows) == len(expected)


def test_a_model_by_blocks_takes_the_sum_of_its_layers(measured):
    result = measured[0]
    layers = {part.part: part for part in result.parts if (part.length, part.batch) == (8, 1)}
    of_model = Counter(["attn", "attn", "mlp", "mlp", "embedding and output"])
    (row,) = (row for row in result.rates if (row.model, row.length, row.batch) == (next(iter(result.models)), 8, 1))
    assert row.state_bytes == sum(n * layers[name].state_bytes for name, n in of_model.items())
    # Of two repeats the median is the mean, so that medians add up.
    total = sum(n * layers[name].milliseconds["prefill"] for name, n in of_model.items())
    assert 1000 * row.seconds["prefill"] == pytest.approx(total)


def test_rates_follow_from_times(measured):
    for row in measured[0].rates:
        assert row.tokens_per_s["train"] == pytest.approx(row.batch * row.length / row.seconds["train"])
        assert row.tokens_per_s["decode"] == pytest.approx(row.batch / row.seconds["decode"])
        assert all(share > 0 for share in row.share_of_floor.values())


@pytest.mark.parametrize(
    ("share", "average", "expected"),
    [
        (0.99, 1.9, None),
        (3.7, 4.0, None),  # four threads
        (None, 2.0, None),  # a GPU
        (0.79, 1.0, "times are too long: processor time was 79% of the clock's."),
        (1.0, 4.5, "times are too long: the load average was 4.5 on 4 cores."),
        (0.5, 9.0, "processor time was 50% of the clock's, the load average was 9.0 on 4 cores."),
    ],
)
def test_other_work_on_the_machine_is_told(share, average, expected):
    warning = Load(share, average, 4).warning
    assert warning is None if expected is None else warning.endswith(expected)


def test_a_process_that_waits_has_less_processor_time_than_the_clock():
    meter = LoadMeter(on_cpu=True)
    with select.epoll() as nothing:
        nothing.poll(0.2)
    assert meter.read().processor_share < 0.5
    assert LoadMeter(on_cpu=False).read().processor_share is None


def test_the_load_is_printed_and_warned_of_in_the_terminal_and_on_the_page(measured, tmp_path):
    loaded = replace(measured[0], load=Load(0.4, 7.0, 2))
    for text in (str(loaded), write_page(loaded, tmp_path / "page").read_text()):
        assert "Other work ran beside this" in text
        assert "processor time 40% of the clock" in text
        assert "load average 7.0 on 2 cores" in text
    assert "Other work" not in str(replace(loaded, load=Load(1.0, 1.0, 2)))


def test_the_largest_batch_has_room_for_the_states_as_they_are(measured):
    for row in measured[0].rates:  # caches of 64 tokens, where the formula counts 8 or 16
        free = measured[0].machine.memory_bytes - 4 * measured[0].models[row.model].total
        assert free - row.state_bytes < row.largest_batch * row.state_bytes <= free


def test_the_first_model_is_the_base_of_ratios(measured):
    base = next(iter(measured[0].models))
    for row in measured[0].rates:
        for ratio in row.ratios.values():
            assert ratio.low <= ratio.value <= ratio.high
            if row.model == base:
                assert (ratio.low, ratio.value, ratio.high) == (1, 1, 1)


def test_the_interval_of_a_ratio_is_that_of_the_median():
    ratio = _ratio([1.0, 1.1, 1.2, 1.3, 5.0])
    assert (ratio.value, ratio.low, ratio.high) == (1.2, 1.0, 5.0)


def test_the_page_and_its_files_hold_what_was_measured(measured):
    result, folder = measured
    page = (folder / "report.html").read_text()
    assert all(name in page for name in result.models)
    assert "batch-2.png" not in page
    assert json.loads((folder / "efficiency.json").read_text())["rates"][0]["batch"] == 1
    assert {path.name for path in folder.glob("*.png")} == {"batch-1.png", "batch-2.png"}
    rows = list(csv.DictReader((folder / "layers.csv").open()))
    assert len(rows) == len(result.parts) == 4 * 2 * 2
    assert {"layer", "length", "batch", "decode_ms", "state_bytes"} <= rows[0].keys()
    assert all(0 < float(row["forward_backward_ms"]) < float(row["train_ms"]) for row in rows)


def test_the_peak_of_a_call_counts_what_it_makes():
    size = 1 << 28
    peak = peak_bytes(lambda: torch.ones(size // 4), CPU)
    assert 0.99 * size <= peak <= 1.2 * size  # the system counts resident pages in portions


def test_the_command_prints_json_of_whole_models(capsys):
    command = ["efficiency", ATTENTION, "--lengths", "4", "--repeats", "1", "--threads", "1", "--json"]
    command[2:2] = ["model.hidden_size=32"]  # right after the models, or at the end
    assert main([*command, "model.blocks.attn.num_heads=2"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["by_block"] is False
    assert printed["parts"] == []
    assert printed["rates"][0]["peak_bytes"].keys() == {"train", "generate"}
    assert printed["models"][printed["rates"][0]["model"]]["pattern"] == "2*(attn mlp)"


def test_a_model_with_multi_token_prediction_is_measured_without_it_which_is_said(capsys, tmp_path):
    small = ["model.hidden_size=32", "model.blocks.attn.num_heads=2", "--lengths", "4", "--repeats", "1"]
    command = ["efficiency", ATTENTION, *small, "--threads", "1", "--by-block", "--out", str(tmp_path / "page")]
    assert main([*command, "--set", "model.mtp.pattern=attn mlp"]) == 0
    sentence = "Multi-token prediction, which training alone runs, is left out of all columns: "
    assert sentence in capsys.readouterr().out
    assert sentence in (tmp_path / "page/report.html").read_text()
    told = json.loads((tmp_path / "page/efficiency.json").read_text())
    (name,) = told["without_mtp"]
    assert "mtp" not in told["models"][name]["parameters"]
    assert {part["part"] for part in told["parts"]} == {"attn", "mlp", "embedding and output"}


def test_models_of_one_name_are_named_by_their_patterns(measured):
    assert list(measured[0].models) == ["2*(attn mlp)", "mamba mlp attn mlp"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lengths", "0"], "--lengths = 0: expected whole numbers of at least 1"),
        (["--lengths", "8,x"], "argument --lengths: 8,x: expected whole numbers such as 512,2048"),
        (["--repeats", "0"], "--repeats = 0"),
        (["--threads", "0"], "--threads = 0"),
        (["--lengths", "8", "model.hiden_size=8"], "hidden_size"),
        (["model.hiden_size=8", "--lengths", "8"], "hidden_size"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(capsys, arguments, message):
    try:
        code = main(["efficiency", ATTENTION, *arguments])
    except SystemExit as left:
        code = left.code
    error = capsys.readouterr().err
    assert code == 2
    assert message in error
    assert error.count("\n") == 1


def test_a_folder_of_something_else_is_left_alone(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    assert main(["efficiency", ATTENTION, "--out", str(tmp_path)]) == 2
    assert "holds mine.txt" in capsys.readouterr().err


@pytest.mark.parametrize("tied", [True, False])
def test_floors_leave_out_logits_and_rows_of_the_embedding_that_nobody_reads(tied):
    account = describe(read_model_config(ATTENTION, f"model.tie_embeddings={tied}").model, 16)
    table = account.config.hidden_size * account.config.vocab_size
    floors = _floors(account, 3, Machine("", 1, 1.0, 1.0, 1), "fp32")
    assert floors["train"] == 3 * 3 * account.flops_forward
    assert floors["prefill"] == 3 * (account.flops_forward - 15 * 2 * table)
    used = account.total - (0 if tied else table)
    assert floors["decode"] == max(4 * used + 3 * account.state_bytes["fp32"], 2 * 3 * used)
