"""Models in a Python session: build, use, and load several side by side."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import hybridtron as ht
from hybridtron.model.language_model import LanguageModel
from tests.conftest import TINY

PATTERN = "2*(mamba mlp) attn mlp"


@pytest.fixture(scope="module")
def model() -> ht.Model:
    return ht.build_model({"model": {**TINY["model"], "vocab_size": 320}})


def tokens(batch: int = 2, length: int = 9) -> torch.Tensor:
    return torch.randint(256, (batch, length), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("given", [{"prompts": 3}, {"prompts": None}, {"prompts": "a", "stop": 3}])
def test_prompts_and_stops_are_texts(model, given):
    with pytest.raises(ht.UserError, match=r"^(prompts|stop) = (3|None): expected text, or a list of texts$"):
        model.generate(**given)


def test_a_pattern_a_dict_and_a_file_build_the_same_kind_of_model(tiny):
    for config in (PATTERN, {"model": TINY["model"]}, TINY["model"], str(tiny), tiny):
        built = ht.build_model(config)
        assert isinstance(built, LanguageModel)
        assert built.logits([[1, 2, 3]]).shape == (1, 3, 320)


def test_a_pattern_may_name_primitives_and_layers_of_mad():
    names = [type(layer.mixer).__name__ for layer in ht.build_model("gla mh-hyena attention moe").layers.values()]
    assert names == ["GLA", "MultiHeadHyena", "Attention", "MoE"]


def test_overrides_change_keys_of_the_model():
    assert ht.build_model(PATTERN, "model.hidden_size=256").hidden([1, 2])[0].shape == (1, 2, 256)
    assert len(ht.build_model({"model": TINY["model"]}, "model.pattern=mlp").layers) == 1


def test_the_seed_decides_the_values():
    first, same, other = (ht.build_model("attn mlp", f"seed={seed}").embedding.weight for seed in (1, 1, 2))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_loss_is_the_mean_cross_entropy_of_the_next_token(model):
    ids = tokens()
    expected = F.cross_entropy(model.logits(ids[:, :-1]).flatten(0, 1).double(), ids[:, 1:].flatten())
    assert model.loss(ids).item() == pytest.approx(expected.item(), rel=1e-5)
    assert model.loss(ids).item() == pytest.approx(math.log(320), rel=0.1)  # nothing is learned yet


def test_loss_trains_the_model():
    model, ids = ht.build_model("attn mlp"), tokens()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    before = model.loss(ids).item()
    for _ in range(5):
        optimizer.zero_grad()
        model.loss(ids).backward()
        optimizer.step()
    assert model.loss(ids).item() < before - 0.5


def test_hidden_has_the_residual_stream_after_each_layer(model):
    ids = tokens()
    hidden = model.hidden(ids)
    assert [state.shape for state in hidden] == [(2, 9, 32)] * 4
    logits = model.head(model.final_norm(hidden[-1].transpose(0, 1))).transpose(0, 1)
    torch.testing.assert_close(logits, model.logits(ids))


@pytest.mark.parametrize("ids", [[1, 2, 3], np.array([1, 2, 3]), torch.tensor([[1, 2, 3]], dtype=torch.int32)])
def test_tokens_may_be_lists_arrays_or_tensors(model, ids):
    torch.testing.assert_close(model.logits(ids), model.logits(torch.tensor([[1, 2, 3]])))


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([0.5, 1.0], "expected whole numbers"),
        ([[[1]]], "expected whole numbers"),
        ([1], "at least 2"),
        ([1, 320], "id 320: expected 0 to 319"),
        ([-1, 3], "id -1: expected 0 to 319"),
    ],
)
def test_other_tokens_are_refused_in_one_line(model, ids, message):
    with pytest.raises(ht.UserError, match=message):
        model.loss(ids)


def test_generate_continues_a_batch_of_prompts(model):
    texts = model.generate(["a prompt", "another, longer prompt"], max_tokens=6, temperature=0)
    assert texts == [model.generate(prompt, 6, temperature=0)[0] for prompt in ("a prompt", "another, longer prompt")]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"max_tokens": -1}, "^max_tokens = -1"), ({"temperature": -1.0}, "^temperature"), ({"seed": -1}, "^seed = -1")],
)
def test_errors_name_parameters(model, options, message):
    with pytest.raises(ht.UserError, match=message):
        model.generate("a", **options)


@pytest.mark.parametrize(
    ("config", "overrides", "message"),
    [
        ("attn mpl", (), "unknown block 'mpl'.*nearest: mlp"),
        ("attn mlp", ("model.hiden_size=3",), "unknown key.*hidden_size"),
        ("no/such.yaml", (), "no such file"),
        ({"model": {"hidden_size": 8}}, (), "model.blocks"),
        ({"modle": {}}, (), "modle.*nearest: model"),
        ({"hidden_size": 8, "patern": "mlp", "blocks": {}}, (), r"model\.patern: unknown key.*nearest: pattern"),
        ({"patern": "mlp"}, (), r"model\.patern: unknown key.*nearest: pattern"),
    ],
)
def test_bad_configs_are_refused_in_one_line_each(config, overrides, message):
    with pytest.raises(ht.UserError, match=message):
        ht.build_model(config, *overrides)


def test_unsigned_tokens_work(model):
    for dtype in (np.uint8, np.uint16, np.uint32):
        torch.testing.assert_close(model.logits(np.array([1, 2, 3], dtype)), model.logits([1, 2, 3]))


@pytest.mark.parametrize("ids", ["hello", [[1, 2], [3]], None])
def test_what_is_no_array_of_tokens_is_refused(model, ids):
    with pytest.raises(ht.UserError, match=r"^tokens"):
        model.loss(ids)


def test_a_long_pattern_is_no_file_name():
    assert len(ht.build_model(" ".join(["mamba mlp"] * 40)).layers) == 80


def test_a_folder_with_the_name_of_a_pattern_hides_it_only_where_it_is_a_run(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "attn").mkdir()
    (tmp_path / "mamba").touch()
    (tmp_path / "attention-run").mkdir()
    assert len(ht.build_model("attn").layers) == len(ht.build_model("mamba").layers) == 1
    with pytest.raises(ht.UserError, match=r"^attention-run"):
        ht.build_model("attention-run")
    (tmp_path / "attn" / "config.yaml").write_text(tiny.read_text())
    assert len(ht.build_model("attn").layers) == len(ht.build_model(tiny).layers) > 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ht.build_model(None), "config = NoneType: expected a YAML file"),
        (lambda: ht.build_model("attn mlp", {"model.hidden_size": 64}), "override .*key=value"),
        (lambda: ht.build_model("configs/runs/nothing"), "no such file"),
        (lambda: ht.build_model("attn mlp", device="gpu"), "device = 'gpu'"),
        (lambda: ht.load(None), "run = None"),
        (lambda: ht.describe("attn mlp", "data.seq_len=0"), "an override"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ht.UserError, match=message):
        call()
