"""Models of ours in transformers: the same parameters, logits and losses."""

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, DataCollatorWithFlattening

from hybridtron.convert.hf import HybridtronForCausalLM
from hybridtron.convert.hf.cache import HybridtronCache
from hybridtron.errors import UserError
from tests.convert.hf.models import case, exported, loaded, trained
from tests.mixers.test_contract import CASES

TOKENS = torch.randint(1, 64, (3, 20), generator=torch.Generator().manual_seed(0))
LENGTHS = (20, 7, 13)


def padded(side, pad=0):
    """The batch cut to LENGTHS, and the mask that says so."""
    tokens, mask = torch.full_like(TOKENS, pad), torch.zeros_like(TOKENS)
    for i, length in enumerate(LENGTHS):
        where = slice(0, length) if side == "right" else slice(20 - length, 20)
        tokens[i, where], mask[i, where] = TOKENS[i, :length], 1
    return tokens, mask


@pytest.mark.parametrize("name", CASES)
def test_every_primitive_travels_bitwise_and_gives_the_logits_of_training(name, tmp_path):
    config = case(name)
    ours = trained(config)
    theirs = exported(ours, config, tmp_path / "out")
    assert type(theirs) is HybridtronForCausalLM
    theirs.save_pretrained(tmp_path / "again")
    first, again = (load_file(tmp_path / folder / "model.safetensors") for folder in ("out", "again"))
    assert first.keys() == again.keys()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert first.keys() == {f"model.{key}" for key, _ in ours.named_parameters()}
    with torch.no_grad():
        torch.testing.assert_close(theirs(TOKENS).logits, ours.logits(TOKENS), atol=0, rtol=0)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_padding_changes_nothing(name, side, tmp_path):
    model = loaded(name, tmp_path)
    tokens, mask = padded(side, pad=63)
    logits = model(tokens, attention_mask=mask).logits
    for i, length in enumerate(LENGTHS):
        alone = model(TOKENS[i : i + 1, :length]).logits[0]
        torch.testing.assert_close(logits[i][mask[i].bool()], alone, atol=1e-5, rtol=1e-5)
    if side == "right":
        assert torch.equal(logits[1, 19], logits[1, 6])


def test_the_loss_is_that_of_transformers_and_of_the_tokens_alone(tmp_path):
    model = loaded("mamba2", tmp_path)
    logits = model(TOKENS).logits
    expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten())
    torch.testing.assert_close(model(TOKENS, labels=TOKENS).loss, expected)
    rows = [
        F.cross_entropy(logits[i, : n - 1], TOKENS[i, 1:n], reduction="sum") / (sum(LENGTHS) - 3)
        for i, n in enumerate(LENGTHS)
    ]
    for side in ("left", "right"):
        tokens, mask = padded(side)
        output = model(tokens, attention_mask=mask, labels=tokens.masked_fill(mask == 0, -100))
        torch.testing.assert_close(output.loss, sum(rows), atol=1e-5, rtol=1e-5)
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_only_the_last_logits_or_chosen_ones(tmp_path):
    model = loaded("attention", tmp_path)
    whole = model(TOKENS).logits
    assert torch.equal(model(TOKENS, logits_to_keep=3).logits, whole[:, -3:])
    assert torch.equal(model(TOKENS, logits_to_keep=torch.tensor([2, 5])).logits, whole[:, [2, 5]])
    cached = model(TOKENS, logits_to_keep=3, use_cache=True).logits
    torch.testing.assert_close(cached, whole[:, -3:], atol=1e-5, rtol=1e-5)


def test_capacities_of_experts_do_not_count_padding(tmp_path):
    config = case("mlp", blocks={"x": {**CASES["moe"], "capacity_factor": 0.5}}, pattern="x")
    model = exported(trained(config), config, tmp_path)
    tokens, mask = padded("left")
    logits = model(tokens, attention_mask=mask).logits
    for i, length in enumerate(LENGTHS):
        torch.testing.assert_close(logits[i, 20 - length :], model(TOKENS[i : i + 1, :length]).logits[0])


def test_tied_embeddings_are_stored_once(tmp_path):
    model = loaded("attention", tmp_path, tie_embeddings=True)
    assert "model.head.weight" not in load_file(tmp_path / "model.safetensors")
    assert model(TOKENS).logits.shape == (3, 20, 64)


def test_a_dtype_can_be_chosen_and_what_is_not_trained_stays_wide(tmp_path):
    loaded("moe", tmp_path, blocks={"x": {**CASES["moe"], "balance": "bias"}}, pattern="x")
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    wide = {name for name, parameter in model.named_parameters() if parameter.dtype == torch.float32}
    assert wide == {"model.layers.0.mixer.router_bias"}
    assert model(TOKENS).logits.dtype == torch.bfloat16
    assert int(model.model.layers["0"].mixer.expert_load.sum()) == 0


def test_a_model_can_be_made_from_its_config_alone(tmp_path):
    loaded("mamba2", tmp_path)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path))
    assert torch.isfinite(model(TOKENS).logits).all()
    assert model.config.vocab_size == 64
    assert torch.equal(model.model.final_norm.weight, torch.ones(32))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.head.weight"), "tensor model.head.weight is missing"),
        (lambda t: t.update({"model.extra": torch.ones(1)}), "tensor model.extra is unexpected"),
    ],
)
def test_tensors_too_few_and_too_many_are_refused(change, message, tmp_path):
    loaded("attention", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=message):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_a_config_that_is_none_of_ours_is_refused_by_its_key(tmp_path):
    loaded("attention", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["model"]["blocks"]["x"]["num_head"] = 4
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"blocks\.x\.num_head: unknown key"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_inputs_that_it_does_not_take_are_refused(tmp_path):
    model = loaded("attention", tmp_path)
    with pytest.raises(ValueError, match="position_ids"):
        model(TOKENS, position_ids=torch.arange(20))
    with pytest.raises(ValueError, match=r"attention_mask \[3, 5\]"):
        model(TOKENS, attention_mask=torch.ones(3, 5))


@pytest.mark.parametrize("name", ["attention", "mamba1", "rwkv6", "hyena", "hyena_experts", "parallel"])
def test_position_ids_that_restart_keep_documents_apart(name, tmp_path):
    """As the flattening collator of transformers packs them."""
    model = loaded(name, tmp_path)
    collate = DataCollatorWithFlattening(return_position_ids=True)
    rows = [TOKENS[i, :length].tolist() for i, length in enumerate(LENGTHS)]
    packed = collate([{"input_ids": row, "labels": row} for row in rows])
    result = model(**packed)
    alone = [model(torch.tensor([row]), labels=torch.tensor([row])) for row in rows]
    torch.testing.assert_close(result.logits[0], torch.cat([each.logits[0] for each in alone]), atol=1e-5, rtol=1e-5)
    expected = sum(each.loss * (length - 1) for each, length in zip(alone, LENGTHS, strict=True)) / (sum(LENGTHS) - 3)
    torch.testing.assert_close(result.loss, expected, atol=1e-5, rtol=1e-5)
    whole = model(packed["input_ids"], labels=packed["input_ids"], position_ids=packed["position_ids"])
    torch.testing.assert_close(whole.loss, expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(model(packed["input_ids"]).logits, result.logits, atol=1e-4)


def test_position_ids_of_one_document_change_nothing_and_others_are_refused(tmp_path):
    model = loaded("attention", tmp_path)
    assert torch.equal(model(TOKENS, position_ids=torch.arange(20).expand(3, 20)).logits, model(TOKENS).logits)
    tokens, mask = padded("left")
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    assert torch.equal(
        model(tokens, attention_mask=mask, position_ids=positions).logits, model(tokens, attention_mask=mask).logits
    )
    for wrong in (torch.arange(20) + 1, torch.arange(20) * 2, torch.arange(20).roll(3)):
        with pytest.raises(ValueError, match="position_ids: expected 0, 1, 2"):
            model(TOKENS, position_ids=wrong.expand(3, 20))
    with pytest.raises(ValueError, match="none with a cache"):
        model(TOKENS, position_ids=torch.arange(20).expand(3, 20), past_key_values=HybridtronCache())
