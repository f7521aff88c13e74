from dataclasses import replace

import pytest
import torch

from hybridtron.config.load import build, load
from hybridtron.errors import UserError
from hybridtron.mad.models.architecture import Architecture, from_layers, from_model, from_pattern, with_residual
from hybridtron.mad.models.layers import ALIASES, LAYERS
from hybridtron.mad.models.proxy_model import ProxyModel, initial_values, proxy_tensors
from hybridtron.mad.models.shrink import shrink
from hybridtron.mad.models.soft_experts import soft_weights
from hybridtron.mad.tasks.protocol import TASKS
from hybridtron.mad.training.loop import train_setting
from hybridtron.mad.training.presets import preset
from hybridtron.mad.training.stack import Stack
from hybridtron.mixers.registry import MIXERS
from hybridtron.model.config import ModelConfig
from hybridtron.training.config import RunConfig

FIXED_STATE = ["mh-gated-linear-attention", "hyena", "mh-hyena", "hyena-experts", "rwkv6-time-mixer", "mamba2",
               "gated-deltanet", "gated-deltaproduct", "comba", "kda", "gated-deltanet-2", "lightning-attention",
               "retention", "rwkv7-time-mixer"]  # fmt: skip


def model(blocks, pattern, hidden_size=1024):
    return build({"hidden_size": hidden_size, "vocab_size": 64, "blocks": blocks, "pattern": pattern}, ModelConfig)


def run(config, autoencoder=False, vocab=16, length=12):
    proxy = ProxyModel(config, autoencoder)
    proxy.load_state_dict(initial_values(config, autoencoder, seed=0))
    return proxy(torch.randint(vocab, (3, length), generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("match_mad_lab", [False, True], ids=["paper", "madlab"])
@pytest.mark.parametrize("layer", LAYERS)
def test_every_layer_makes_a_model_and_an_autoencoder(layer, match_mad_lab):
    config = from_layers([layer, "swiglu"], match_mad_lab).model(vocab_size=16, seq_len=12)
    for autoencoder in (False, True):
        logits = run(config, autoencoder)
        assert logits.shape == (3, 12, 16)
        assert logits.isfinite().all()


@pytest.mark.parametrize(
    ("layers", "parameters"),
    [(["mh-attention"], 66_048), (["swiglu"], 135_168), (["mlp"], 131_072), (["mamba"], 107_264)],
)
def test_layers_have_the_parameters_of_mad_lab(layers, parameters):
    """Norms apart."""
    assert from_layers(layers).account()["parameters"] - 2 * 128 == parameters


@pytest.mark.parametrize("layer", FIXED_STATE)
def test_layers_of_fixed_state_share_4096(layer):
    assert from_layers([layer, "swiglu"] * 2).account()["state_size"] == 4096
    assert from_layers(["mamba"] * 4).account()["state_size"] == 4096


def test_quirks_are_those_of_mad_labs_code():
    plain, match_mad_lab = (from_layers(["mh-hyena", "moe-mlp"], q) for q in (False, True))
    assert plain.account()["state_size"] * 2 == match_mad_lab.account()["state_size"]
    assert plain.fingerprint() != match_mad_lab.fingerprint()
    assert match_mad_lab.model(16, 32).blocks["moe_mlp"].type == "soft_moe"


def test_soft_routing_leaves_every_expert_a_weight():
    scores = torch.tensor([2.0, 1.0, -1.0, 0.5])
    expected = torch.tensor([2.0, 1.0, 0.0, 0.0]).softmax(-1)
    assert torch.allclose(soft_weights(scores, 2), expected)
    assert (soft_weights(scores, 2) > 0).all()


def test_layers_in_any_notation_are_one_architecture():
    layers = from_layers(["mh-hyena", "swiglu", "mh-hyena", "swiglu"])
    assert layers == from_pattern("2*(mh_hyena swiglu)") == from_layers(["mh_hyena", "swiglu"] * 2)
    assert layers == from_pattern("2*(mh-hyena swiglu)")
    assert layers.name == "2*(mh_hyena swiglu)"


def test_this_projects_names_of_layers_are_taken_for_mad_labs():
    assert from_layers(["mamba1", "moe"]) == from_layers(["mamba", "moe-mlp"]) == from_pattern("mamba1 moe")
    assert set(ALIASES).isdisjoint(LAYERS)
    for kind in MIXERS.keys() - {"parallel"}:
        (block,) = from_layers([kind]).blocks.values()
        assert block["type"] == kind


@pytest.mark.parametrize("task", TASKS)
def test_filters_run_over_the_length_of_the_setting(task, monkeypatch):
    """Not of an example, which in recall is one shorter."""
    seen = []
    start = Architecture.start
    monkeypatch.setattr(Architecture, "start", lambda *given: seen.append(start(*given)) or seen[-1])
    chosen = preset("smoke", max_steps=1, eval_examples=2)
    train_setting(from_layers(["hyena"]), task, {"seq_len": 40, "num_train_examples": 8}, chosen, [0])
    assert seen[0][0].blocks["hyena"].filter_length == 40


def test_filters_run_over_the_length_that_a_model_is_built_for():
    architecture = from_layers(["hyena", "mh-attention"])
    assert architecture.model(16, 77).blocks["hyena"].filter_length == 77


@pytest.mark.parametrize(("kind", "taps"), [("hyena_se", 7), ("hyena_mr", 128)])
def test_filters_of_free_taps_keep_their_number(kind, taps):
    architecture = from_model("evo", model({"a": {"type": kind}, "b": {"type": "parallel", "branches": [
        {"type": kind}, {"type": "attention", "num_heads": 4}]}}, "a b"))  # fmt: skip
    blocks = architecture.model(16, 77).blocks
    assert blocks["a"].filter_length == blocks["b"].branches[0].filter_length == taps


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: from_layers(["mh-atention"]), "layers: 'mh-atention': expected one of .*nearest: mh-attention"),
        (lambda: from_layers([]), "at least one layer"),
        (lambda: from_pattern("2*(mamba swigl)"), "unknown block 'swigl'.*nearest: swiglu"),
        (lambda: Architecture("x", {"a": {"type": "atention"}}, "a").account(), "atention.*nearest: attention"),
        (lambda: Architecture("x", {"a": {"heads": 3}}, "a").account(), "type"),
        (lambda: from_model("x", model({"a": {"type": "mlp"}}, "a"), depth=0), "^depth = 0: expected at least 1"),
        (
            lambda: with_residual(from_layers(["swiglu"]), {"type": "sandwitch"}),
            "^residual: type = 'sandwitch': .*sandwich",
        ),
    ],
)
def test_wrong_names_are_refused_with_the_nearest(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_a_language_model_is_causal_and_an_autoencoder_sees_all_at_its_end():
    config = from_layers(["mamba", "mh-attention"]).model(16, 12)
    tokens = torch.randint(16, (1, 12), generator=torch.Generator().manual_seed(1))
    changed = tokens.clone()
    changed[0, 5] = (changed[0, 5] + 1) % 16
    for autoencoder, untouched in ((False, 5), (True, 0)):
        proxy = ProxyModel(config, autoencoder)
        proxy.load_state_dict(initial_values(config, autoencoder, seed=0))
        same = (proxy(tokens) - proxy(changed)).abs().amax(-1)[0] < 1e-7
        assert same[:untouched].all()
        assert not same[max(untouched, 5) :].any()


def test_initial_values_follow_mad_lab_and_the_seed():
    config = from_layers(["swiglu"]).model(16, 12)
    language, code = (initial_values(config, autoencoder, seed=3) for autoencoder in (False, True))
    name = "layers.0.mixer.gate_up.weight"
    assert language[name].abs().max() <= 128**-0.5
    assert language[name].std().item() == pytest.approx((3 * 128) ** -0.5, rel=0.02)
    assert code[name].std().item() == pytest.approx(0.02, rel=0.02)
    assert language["embedding.weight"].std().item() == pytest.approx(0.02, rel=0.1)
    assert (code["head.bias"] == 0).all()
    assert (language["head.bias"] == 0).all()
    assert (initial_values(config, False, 3)[name] == language[name]).all()
    assert (initial_values(config, False, 4)[name] != language[name]).any()
    assert proxy_tensors(config, True).keys() > proxy_tensors(config, False).keys()


def test_all_linear_maps_may_start_normal_as_in_mad_lab_before_december_2024():
    config = from_layers(["mamba", "hyena", "mh-linear-attention", "swiglu"]).model(16, 12)
    values = initial_values(config, False, 0, normal_init=True)
    for name in (
        "0.mixer.dt_weight",
        "0.mixer.in_proj.weight",
        "1.mixer.filter.output_weight",
        "2.mixer.feature_weight",
        "3.mixer.down.weight",
    ):
        assert values[f"layers.{name}"].std().item() == pytest.approx(0.02, rel=0.15), name
    assert (values["layers.0.mixer.dt_bias"] == 0).all()
    plain = initial_values(config, False, 0)
    assert (plain["layers.0.mixer.dt_bias"] != 0).all()
    for name in ("layers.0.mixer.A_log", "layers.1.mixer.conv_weight", "embedding.weight"):
        assert torch.equal(values[name], plain[name]), name


def test_filters_feature_maps_and_rwkv6_start_as_in_mad_lab():
    config = from_layers(["hyena", "mh-linear-attention", "rwkv6-time-mixer", "rwkv6-channel-mixer"]).model(16, 12)
    language, code = (initial_values(config, autoencoder, seed=0) for autoencoder in (False, True))
    mixture = 1 - torch.arange(128) / 128
    for values in (language, code):
        for name in ("filter.input_bias", "filter.inner_bias"):
            assert (values[f"layers.0.mixer.{name}"] == 0).all()
        assert values["layers.1.mixer.feature_weight"].numel() + values["layers.1.mixer.feature_bias"].numel() == 288
        assert (values["layers.1.mixer.feature_bias"] == 0).all()
        for name in ("2.mixer.mix_base", "2.mixer.mix_key", "3.mixer.mix_key", "3.mixer.mix_receptance"):
            torch.testing.assert_close(values[f"layers.{name}"], mixture)
        torch.testing.assert_close(values["layers.2.mixer.mix_gate"], 1 - (1 - mixture).sqrt())
        torch.testing.assert_close(values["layers.2.mixer.bonus"][:6], torch.tensor([0, 0.1, -0.1, 0, 0.1, -0.1]))
    feature = "layers.1.mixer.feature_weight"
    assert language[feature].abs().max() <= 8**-0.5
    assert language[feature].std().item() == pytest.approx((3 * 8) ** -0.5, rel=0.1)
    assert code[feature].std().item() == pytest.approx(0.02, rel=0.1)


ATTENTION = {"type": "attention", "num_heads": 32, "num_kv_heads": 8, "head_dim": 128}
MAMBA = {"type": "mamba2", "head_dim": 64, "state_dim": 128, "num_groups": 8}
MOE = {"type": "moe", "num_experts": 16, "top_k": 4, "ffn_hidden_size": 512, "balance": "bias", "z_loss": 1e-3}


def test_a_large_model_is_shrunk_by_the_rule():
    large = model({"m": MAMBA, "a": ATTENTION, "f": {"type": "swiglu", "ffn_hidden_size": 2816}, "e": MOE}, "m f a e")
    blocks, pattern, notes = shrink(large)
    assert pattern == "m f a e"
    assert notes == ["width 1024 -> 128"]
    small = build({"hidden_size": 128, "vocab_size": 8, "blocks": blocks, "pattern": pattern}, ModelConfig).blocks
    assert (small["a"].num_heads, small["a"].kv_heads, small["a"].head_size) == (16, 4, 8)
    assert (small["m"].head_dim, small["m"].state_dim) == (16, 128)
    assert small["f"].inner_size == 352
    assert (small["e"].ffn_hidden_size, small["e"].num_experts, small["e"].top_k) == (64, 16, 4)
    assert (small["e"].balance, small["e"].z_loss, small["e"].aux_weight) == ("none", 0.0, 0.0)


def test_branches_are_shrunk_too():
    large = model({"p": {"type": "parallel", "branches": [ATTENTION, MAMBA]}}, "2*p")
    made = from_model("hymba", large)
    assert made.model(16, 32).blocks["p"].branches[0].num_heads == 16
    assert run(made.model(16, 12)).shape == (3, 12, 16)


@pytest.mark.parametrize(
    ("pattern", "depth", "expected"),
    [
        ("2*(m f) a f", 8, "2*(m f) a f"),
        ("4*(5*(m f) a f)", 8, "m f a f 2*(m f)"),
        ("24*(m f)", 6, "3*(m f)"),
        ("6*(m f a f)", 4, "m f a f"),
        ("10*m", 3, "3*m"),
        ("30*(m f)", 1, "m f"),
    ],
)
def test_layers_are_sampled_by_groups_that_keep_their_shares(pattern, depth, expected):
    large = model({"m": MAMBA, "a": ATTENTION, "f": {"type": "mlp"}}, pattern)
    found = shrink(large, depth)[1]
    assert sorted(found.replace("*", " ")) == sorted(expected.replace("*", " "))


def test_a_run_config_of_this_project_is_shrunk(request):
    config = load(request.config.rootpath / "configs" / "runs" / "quickstart.yaml", [], RunConfig)
    made = from_model(config.name, config.model)
    assert made.hidden_size == 128
    assert run(made.model(16, 12)).isfinite().all()


def test_a_residual_topology_is_part_of_what_is_trained():
    plain = from_pattern("2*(gla swiglu)")
    assert with_residual(plain, {"type": "plain"}) == plain
    made = with_residual(plain, {"type": "hyper_connections", "streams": 2})
    assert made.name == f"{plain.name}, residual hyper_connections"
    assert made.fingerprint() not in (plain.fingerprint(), replace(made, residual={"type": "sandwich"}).fingerprint())
    assert made.account()["parameters"] > plain.account()["parameters"]
    with pytest.raises(UserError, match=r"residual: layers = 3: expected a divisor of the pattern's 4 layers"):
        with_residual(plain, {"type": "parallel", "layers": 3})
    model = made.model(vocab_size=16, seq_len=32)
    assert from_model("of a run", model).residual == made.residual | {"sinkhorn_iterations": 20, "eps": 1e-6}


@pytest.mark.parametrize(("layers", "pattern"), [(2, "a a m a a m"), (3, "3*(a m)"), (3, "a a m a a m m m m")])
def test_a_smaller_model_keeps_whole_groups_of_a_parallel_topology(layers, pattern):
    blocks = {"a": {"type": "attention", "num_heads": 4}, "m": {"type": "swiglu", "ffn_hidden_size": 64}}
    keys = {"hidden_size": 64, "vocab_size": 64, "blocks": blocks, "pattern": pattern}
    large = build({**keys, "residual": {"type": "parallel", "layers": layers}}, ModelConfig)
    for depth in range(1, 9):
        small = from_model("of a run", large, depth).model(vocab_size=16, seq_len=32).layer_names
        groups = [large.layer_names[i : i + layers] for i in range(0, len(large.layer_names), layers)]
        assert len(small) <= max(depth, layers)
        assert {small[i : i + layers] for i in range(0, len(small), layers)} <= set(groups)


@pytest.mark.parametrize(
    "residual", [{"type": "parallel"}, {"type": "hyper_connections"}, {"type": "attention_residuals", "block_size": 2}]
)
@pytest.mark.parametrize("autoencoder", [False, True])
def test_cells_of_every_topology_train_as_one(residual, autoencoder):
    """Gradients of two stacked cells are those of each alone."""
    model = with_residual(from_pattern("2*(gla swiglu)"), residual).model(vocab_size=16, seq_len=32)
    values = [initial_values(model, autoencoder, seed) for seed in (0, 1)]
    tokens = torch.randint(16, (3, 32), generator=torch.Generator().manual_seed(0))
    alone, stacked = (Stack(model, autoencoder, values, one_pass=one_pass) for one_pass in (False, True))
    (loss, expected), (stacked_loss, found) = (stack.gradients(tokens, tokens) for stack in (alone, stacked))
    torch.testing.assert_close(stacked_loss, loss)
    assert float((found - expected).norm() / expected.norm()) < 1e-4
