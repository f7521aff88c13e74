"""bf16 parameters with fp32 copies in the optimizer; the z-loss."""

import json

import pytest
import torch

from hybridtron.config.load import load as load_config
from hybridtron.errors import UserError
from hybridtron.ops.matmul_format import multiplies_bf16
from hybridtron.training.config import RunConfig
from hybridtron.training.single_process import load


def rows(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_bf16_trains_close_to_fp32_and_resumes_bitwise(tiny, hybridtron):
    runs = {}
    for name, overrides in {"fp32": [], "bf16": ["precision.format=bf16"]}.items():
        runs[name] = tiny.parent / name
        result = hybridtron("train", tiny, f"folder={runs[name]}", *overrides)
        assert result.returncode == 0, result.stderr
    assert rows(runs["bf16"])[-1]["loss"] == pytest.approx(rows(runs["fp32"])[-1]["loss"], rel=0.02)
    model = load(runs["bf16"])
    float32 = {name.rpartition(".")[2] for name, p in model.named_parameters() if p.dtype == torch.float32}
    assert float32 == {"A_log", "D", "dt_bias"}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32, torch.bfloat16}
    halves = tiny.parent / "halves"
    for steps, more in ((10, []), (20, ["--resume"])):
        overrides = ["precision.format=bf16", "schedule.type=constant", f"train.steps={steps}", f"folder={halves}"]
        assert hybridtron("train", tiny, *overrides, *more).returncode == 0
    whole = tiny.parent / "whole"
    assert hybridtron("train", tiny, *overrides[:2], f"folder={whole}").returncode == 0
    assert [row["loss"] for row in rows(halves)] == [row["loss"] for row in rows(whole)]


def test_z_loss_pulls_the_partition_function_to_one(tiny, hybridtron):
    sizes = {}
    for weight in (0.0, 1.0):
        folder = tiny.parent / f"z{weight}"
        result = hybridtron("train", tiny, f"folder={folder}", f"train.z_loss={weight}", "optimizer.lr=1e-2")
        assert result.returncode == 0, result.stderr
        model = load(folder)
        with torch.no_grad():
            tokens = torch.frombuffer(b"the attention model in a state o", dtype=torch.uint8).long()[None]
            _, log_z = model(tokens, tokens)
            sizes[weight] = float(log_z.abs().mean())
    assert sizes[1.0] < 0.7 * sizes[0.0]


def test_products_in_bf16_train_close_to_fp32_and_are_another_study(tiny, hybridtron):
    config = load_config(tiny, [], RunConfig)
    other = load_config(tiny, ["precision.matmul=bf16"], RunConfig)
    assert config.identity()["precision"] == {"format": "fp32"}
    assert other.identity()["precision"] == {"format": "fp32", "matmul": "bf16"}
    with pytest.raises(UserError, match=r"expected float32 with precision\.format bf16"):
        load_config(tiny, ["precision.matmul=bf16", "precision.format=bf16"], RunConfig)
    result = hybridtron("train", tiny, "precision.matmul=bf16")
    if multiplies_bf16():
        assert result.returncode == 0, result.stderr
    else:
        assert "precision.matmul = bf16: products on this processor are not computed in bf16" in result.stderr
