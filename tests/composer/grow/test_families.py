"""The families under configs/models: sizes, recipes, and that every one can be built."""

from __future__ import annotations

import json
import math
import time
from itertools import product
from pathlib import Path

import pytest
import torch

from hybridtron.accounting.describe import describe
from hybridtron.backends.torch import TorchBackend
from hybridtron.cli.main import main
from hybridtron.config.load import load
from hybridtron.model.language_model import LanguageModel
from hybridtron.planner.plan import plan
from hybridtron.training.config import RunConfig
from hybridtron.training.validation.resolve import resolve

MODELS = Path(__file__).parents[3] / "configs/models"
NOMINAL = {"70m": 70e6, "160m": 160e6, "350m": 350e6, "1b": 1e9, "3b": 3e9, "7b": 7e9}
FAMILIES = (
    "transformer_pp", "llama3_2", "sandwich", "striped_1_2", "striped_1_4", "striped_1_8", "hyena", "mh_hyena",
    "mamba", "mamba2",
    "striped_hyena_50", "striped_hyena_25", "striped_hyena_8", "striped_mamba", "striped_hyena_moe",
    "striped_hyena_experts_moe", "nemotron_h", "composite_stacked", "composite_stretched",
    "falcon_h1_like", "kimi_linear_like", "lfm2_like", "mamba3_hybrid", "nemotron_3_like", "olmo_hybrid_like",
    "qwen3_next_like", "samba_like",
)  # fmt: skip
AT_MOST = 0.03
# Where a family is bound to published widths or to a rule that rounds: its distance from the nominal size, in percent.
BOUND = {
    ("llama3_2", "3b"): -6.0, ("sandwich", "3b"): -6.0, ("composite_stacked", "3b"): -6.0,
    ("striped_1_4", "3b"): -4.4, ("striped_1_4", "70m"): 3.4, ("striped_1_8", "3b"): -5.2,
    ("striped_1_2", "3b"): -6.0, ("striped_1_2", "70m"): 3.4, ("composite_stacked", "70m"): 3.4,
    ("composite_stretched", "70m"): 12.4, ("composite_stretched", "160m"): 13.4, ("composite_stretched", "350m"): 11.5,
    ("composite_stretched", "1b"): 6.1, ("composite_stretched", "3b"): -4.4, ("composite_stretched", "7b"): 3.9,
}  # fmt: skip


def family(name: str, size: str, *overrides: str) -> RunConfig:
    return resolve(load(MODELS / f"{name}.yaml", [f"size={size}", *overrides], RunConfig))


def test_the_list_of_families_is_that_of_the_folder():
    assert {path.stem for path in MODELS.glob("*.yaml")} == {*FAMILIES, "ladder"}


def test_every_family_and_size_is_described_near_its_name_within_two_minutes(capsys):
    begun = time.process_time()
    for name, size in product(FAMILIES, NOMINAL):
        assert main(["describe", str(MODELS / f"{name}.yaml"), f"size={size}", "--json"]) == 0
        apart = json.loads(capsys.readouterr().out)["parameters"]["non_embedding"] / NOMINAL[size] - 1
        if (name, size) in BOUND:
            assert round(100 * apart, 1) == BOUND[name, size]
        else:
            assert abs(apart) <= AT_MOST, (name, size)
    assert time.process_time() - begun < 120


@pytest.mark.parametrize("name", FAMILIES)
def test_every_size_is_built_as_described(name):
    for size in NOMINAL:
        config = family(name, size)
        assert config.name == f"{name}_{size}"
        model = LanguageModel(config.model, TorchBackend(torch.bfloat16, "meta"))
        counted = describe(config.model, config.data.seq_len).total
        assert sum(parameter.numel() for parameter in model.parameters()) == counted


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("size", NOMINAL)
def test_recipes_follow_their_rule(size, name):
    """20 tokens per parameter; peak rate and batch of DeepSeek LLM (arXiv 2401.02954); warm-up and decay."""
    config, parameters = family(name, size), NOMINAL[size]
    tokens = 20 * parameters
    flops = 6 * parameters * tokens
    assert config.optimizer.lr == pytest.approx(0.3118 * flops**-0.1250, rel=0.05)  # two digits
    batch = 0.2920 * flops**0.3271
    assert abs(math.log2(config.tokens_per_step / batch)) <= 0.5
    assert config.train.steps * config.tokens_per_step == pytest.approx(tokens, rel=0.02)
    assert config.train.steps * config.tokens_per_step >= tokens
    assert config.schedule.type == "wsd"
    assert config.schedule.warmup_steps == min(2000, config.train.steps // 10)
    assert config.schedule.decay_steps == config.train.steps // 5


@pytest.mark.parametrize("name", FAMILIES)
def test_attention_shares_are_those_of_the_name(name):
    """Of the sequence mixers, in the largest size."""
    model = family(name, "7b").model
    mixers = [layer for layer in model.layer_names if model.blocks[layer].kind == "sequence"]
    share = sum(model.blocks[layer].attends for layer in mixers) / len(mixers)
    expected = {
        "hyena": 0, "mh_hyena": 0, "mamba": 0, "mamba2": 0, "striped_hyena_50": 1 / 2, "striped_hyena_25": 1 / 4,
        "striped_hyena_8": 1 / 12, "striped_hyena_moe": 1 / 4, "striped_hyena_experts_moe": 1 / 4,
        "striped_mamba": 1 / 7, "nemotron_h": 4 / 28, "falcon_h1_like": 0, "lfm2_like": 6 / 16,
        "kimi_linear_like": 1 / 4, "mamba3_hybrid": 1 / 6, "nemotron_3_like": 1 / 4,
        "olmo_hybrid_like": 1 / 4, "qwen3_next_like": 1 / 4, "samba_like": 1 / 2,
    }  # fmt: skip
    assert share == pytest.approx(expected.get(name, 1), abs=0.03)


def test_composites_are_what_scale_makes_of_the_small_patterns(capsys):
    for name, small, method in (
        ("composite_stacked", "AAMMMM", "stack"),
        ("composite_stretched", "AAMMMMMAAMMMAMMM", "stretch"),
    ):
        for size in NOMINAL:
            target = ["--target", str(MODELS / "llama3_2.yaml"), f"size={size}"]
            assert main(["scale", small, "--method", method, "--round", "up", *target, "--json"]) == 0
            pattern = json.loads(capsys.readouterr().out)["pattern"]
            assert family(name, size).model.parsed_pattern.layers == _layers(name, size, pattern)


def _layers(name: str, size: str, pattern: str) -> tuple[str, ...]:
    return family(name, size, f"model.pattern={pattern}").model.layer_names


@pytest.mark.parametrize("size", NOMINAL)
def test_stripes_and_stacks_differ_in_order_alone(size):
    striped, stacked = (family(name, size).model.parsed_pattern for name in ("striped_1_2", "composite_stacked"))
    assert striped.counts() == stacked.counts()
    assert striped.layers != stacked.layers


def test_8b_is_another_name_of_7b():
    for name in ("llama3_2", "nemotron_h"):
        assert family(name, "8b") == family(name, "7b")


@pytest.mark.parametrize("name", FAMILIES)
def test_the_dry_run_of_7b(name):
    """Whole pattern, stages and sequence, built and run without values in the family's layout on 8 processes."""
    config = family(name, "7b")
    made = plan(config, 8, dry_run=True)
    assert config.data.seq_len == 4096
    assert made.parameters == made.parameters_over_processes
    runs = sorted(run for stage in made.stages for run in stage.layers)
    assert [first for first, _ in runs] == [0, *(last + 1 for _, last in runs[:-1])]
    assert runs[-1][1] == len(config.model.layer_names) - 1
