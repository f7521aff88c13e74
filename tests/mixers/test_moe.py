"""Mixture of experts: against its definition, against transformers, and what keeps its load even."""

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call, grad, vmap
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    BailingHybridConfig,
    DeepseekV3Config,
    DeepseekV4Config,
    GptOssConfig,
    JambaConfig,
    MixtralConfig,
    NemotronHConfig,
    Qwen3NextConfig,
)
from transformers.models.bailing_hybrid.modeling_bailing_hybrid import BailingHybridMoE
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE
from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4TopKRouter
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssMLP
from transformers.models.jamba.modeling_jamba import JambaSparseMoeBlock
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock
from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHMoE
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextSparseMoeBlock

from hybridtron.backends.torch import TorchBackend
from hybridtron.config.load import build
from hybridtron.config.schema import dispatch
from hybridtron.errors import UserError
from hybridtron.mixers.registry import MIXERS
from hybridtron.model.initialize import initialize
from hybridtron.model.language_model import LanguageModel
from hybridtron.ops.moe.attached_loss import attached_losses_scale
from hybridtron.ops.moe.routing import choose, combining_weights, router_log_scores
from hybridtron.training.config import RunConfig
from hybridtron.training.validation.resolve import data_parallel_size, resolve
from tests.conftest import TINY
from tests.ops.compare import assert_causal
from tests.training.runs import resolved_tiny

WIDTH, INNER, S, B = 16, 12, 10, 3


def config_of(**keys):
    block = {"type": "moe", "hidden_size": WIDTH, "num_experts": 5, "ffn_hidden_size": INNER, **keys}
    return dispatch(block, MIXERS)


def built(dtype=torch.float32, **keys):
    torch.manual_seed(0)
    module = config_of(**keys).build(TorchBackend(dtype))
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module


def tokens(dtype=torch.float32, seed=1):
    return torch.randn(S, B, WIDTH, dtype=dtype, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def by_definition(module, x):
    """Token by token: output and the layer's own losses."""
    config = module.config
    logits = x @ module.router_weight.T + (module.router_logit_bias if config.bias else 0)
    scores = SCORES[config.score](logits)
    preference = scores if module.router_bias is None else scores + module.router_bias
    parameters = dict(module.named_parameters())
    y, taken, chosen_by = torch.zeros_like(x), torch.zeros(B, config.num_experts), torch.zeros(B, config.num_experts)
    rows = []
    for t in range(S):
        for b in range(B):
            groups = preference[t, b].unflatten(0, (config.num_groups, -1))
            best = groups.sort(-1).values[:, -2:].sum(-1).topk(config.top_groups).indices
            outside = torch.ones_like(groups, dtype=torch.bool).index_fill(0, best, False).flatten()
            experts = preference[t, b].masked_fill(outside, -torch.inf).topk(config.top_k).indices
            weights = scores[t, b, experts]
            if config.normalizes:
                weights = weights / weights.sum()
            token = module.latent_down @ x[t, b] if config.latent_size else x[t, b]
            out = torch.zeros_like(token)
            for i, weight in zip(experts.tolist(), weights, strict=True):
                chosen_by[b, i] += 1
                share = S * config.top_k / config.num_experts
                if config.capacity_factor is not None and taken[b, i] >= config.capacity_factor * share:
                    continue
                taken[b, i] += 1
                packed = parameters[config.in_name][i] @ token
                if config.bias:
                    packed = packed + parameters[f"{config.in_name}_bias"][i]
                y = module.down[i] @ activated(config, packed) + (module.down_bias[i] if config.bias else 0)
                out = out + config.scaling_factor * weight * y
            out = module.latent_up @ out if config.latent_size else out
            if config.shared:
                gate = (module.shared_gate[0] @ x[t, b]).sigmoid() if config.shared_gate else 1
                packed = parameters[f"shared.{config.in_name}.weight"] @ x[t, b]
                out = out + gate * (module.shared.down.weight @ activated(config, packed))
            rows.append(out)
    y = torch.stack(rows).view(S, B, WIDTH)
    p = (scores / scores.sum(-1, keepdim=True)).mean(0)
    f = (chosen_by / (S * config.top_k)).to(x.dtype)
    own = config.aux_weight * config.num_experts * (f * p).sum(-1).mean()
    own = own + config.z_loss * logits.exp().sum(-1).log().square().mean()
    return y, own


SCORES = {
    "softmax": lambda logits: logits.softmax(-1),
    "sigmoid": torch.sigmoid,
    "sqrt_softplus": lambda logits: (1 + logits.exp()).log().sqrt(),
}


def activated(config, x):
    gate, up = x.chunk(2) if config.activation.endswith("swiglu") else (x, 1)
    match config.activation:
        case "clamped_swiglu":
            gate, up = gate.clamp(max=config.swiglu_limit), up.clamp(-config.swiglu_limit, config.swiglu_limit) + 1
            return gate * (config.swiglu_alpha * gate).sigmoid() * up
        case "relu2":
            return gate.clamp(min=0) ** 2
    return F.silu(gate) * up


VARIANTS = {
    "plain": {"balance": "none"},
    "aux and z": {"aux_loss": 0.5, "z_loss": 0.1},
    "one expert": {"top_k": 1, "aux_loss": 0.5},
    "all experts": {"top_k": 5},
    "sigmoid": {"score": "sigmoid", "top_k": 3, "aux_loss": 0.5, "scaling_factor": 2.5},
    "not normalised": {"score": "sigmoid", "normalize_top_k": False},
    "bias and shared": {"score": "sigmoid", "balance": "bias", "shared_ffn_hidden_size": 6},
    "bias and aux": {"balance": "bias", "aux_loss": 0.5},
    "without gates": {"activation": "relu2", "shared_ffn_hidden_size": 6, "score": "sigmoid", "balance": "bias"},
    "gated shared": {"shared_ffn_hidden_size": 6, "shared_gate": True, "top_k": 3},
    "biased and clamped": {"activation": "clamped_swiglu", "bias": True, "swiglu_limit": 0.5, "top_k": 3},
    "biased, without gates": {"activation": "silu", "bias": True},
    "latent": {"latent_size": 4, "shared_ffn_hidden_size": 6, "activation": "relu2", "aux_loss": 0.5},
    "latent with biases and a capacity": {"latent_size": 6, "bias": True, "activation": "silu", "capacity_factor": 5.0},
    "groups": {"num_experts": 8, "num_groups": 4, "top_groups": 2, "top_k": 3, "score": "sigmoid", "balance": "bias"},
    "root of softplus": {"score": "sqrt_softplus", "top_k": 3, "scaling_factor": 1.5, "aux_loss": 0.5},
    "latent groups": {
        "latent_size": 4,
        "num_experts": 8,
        "num_groups": 4,
        "top_groups": 2,
        "score": "sqrt_softplus",
        "z_loss": 0.1,
    },
    "capacity": {"capacity_factor": 0.8, "aux_loss": 0.5, "shared_ffn_hidden_size": 6},
}


@pytest.mark.parametrize("variant", VARIANTS)
class TestDefinition:
    def test_output_and_gradients(self, variant):
        module, x = built(torch.float64, **VARIANTS[variant]), tokens(torch.float64)
        learnt = {name: p for name, p in module.named_parameters() if p.requires_grad}
        weight = torch.randn(S, B, WIDTH, dtype=torch.float64)
        y = module(x)
        expected, own = by_definition(module, x)
        torch.testing.assert_close(y, expected)
        actual = torch.autograd.grad((y * weight).sum(), [x, *learnt.values()])
        reference = torch.autograd.grad((expected * weight).sum() + own, [x, *learnt.values()])
        for name, one, other in zip(["x", *learnt], actual, reference, strict=True):
            torch.testing.assert_close(one, other, msg=lambda text, name=name: f"{name}: {text}")

    def test_the_form_for_transforms_is_the_same(self, variant):
        module = built(**VARIANTS[variant])
        learnt = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}
        xs = torch.stack([tokens(seed=seed).detach() for seed in range(3)])

        def loss(parameters, x):
            return functional_call(module, parameters, (x,)).square().mean()

        gradients = vmap(grad(loss), (None, 0))(learnt, xs)
        for i, x in enumerate(xs):
            module.zero_grad()
            module(x).square().mean().backward()
            for name, parameter in module.named_parameters():
                if parameter.requires_grad:
                    torch.testing.assert_close(gradients[name][i], parameter.grad, rtol=1e-4, atol=1e-5)

    def test_causality(self, variant):
        module = built(**VARIANTS[variant])
        assert_causal(lambda x: module(x.transpose(0, 1)).transpose(0, 1), tokens().transpose(0, 1))

    def test_counts_of_the_account(self, variant):
        config, module = config_of(**VARIANTS[variant]), built(**VARIANTS[variant])
        assert config.parameters() == sum(p.numel() for p in module.parameters())
        own = [p[0].numel() for name, p in module.named_parameters() if config.tensors()[name].experts]
        unused = (config.num_experts - config.top_k) * sum(own)
        assert config.active_parameters() == config.parameters() - unused
        assert config.state_size(S) == 0


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "capacity"])
def test_flops_equal_those_of_the_flop_counter(variant):
    module, x = built(**VARIANTS[variant]), tokens()
    with FlopCounterMode(display=False) as forward:
        y = module(x)
    with FlopCounterMode(display=False) as backward:
        y.sum().backward()
    assert forward.get_total_flops() == B * module.config.flops(S)
    assert backward.get_total_flops() == 2 * B * module.config.flops(S)


def copied(module, theirs):
    """The parameters of a transformers block."""
    state = {"router_weight": theirs["gate.weight"], "gate_up": theirs["experts.gate_up_proj"]}
    state["down"] = theirs["experts.down_proj"]
    if "gate.e_score_correction_bias" in theirs:
        state["router_bias"] = theirs["gate.e_score_correction_bias"]
        gate_up = [theirs[f"shared_experts.{name}_proj.weight"] for name in ("gate", "up")]
        state["shared.gate_up.weight"] = torch.cat(gate_up)
        state["shared.down.weight"] = theirs["shared_experts.down_proj.weight"]
    module.load_state_dict(state)


def randomised(block):
    torch.manual_seed(0)
    for tensor in block.state_dict().values():
        torch.nn.init.normal_(tensor, std=0.3)
    return block


@torch.no_grad()
def test_equal_weights_give_the_outputs_of_mixtral():
    keys = {"num_local_experts": 5, "num_experts_per_tok": 2}
    theirs = randomised(MixtralSparseMoeBlock(MixtralConfig(hidden_size=WIDTH, intermediate_size=INNER, **keys)))
    ours = built()
    copied(ours, theirs.state_dict())
    torch.testing.assert_close(ours(tokens()), theirs(tokens()), rtol=0, atol=1e-4)


@torch.no_grad()
def test_equal_weights_give_the_outputs_of_deepseek_v3():
    keys = {"n_routed_experts": 6, "num_experts_per_tok": 3, "n_group": 1, "topk_group": 1, "n_shared_experts": 2}
    keys |= {"norm_topk_prob": True, "routed_scaling_factor": 2.5}
    theirs = randomised(DeepseekV3MoE(DeepseekV3Config(hidden_size=WIDTH, moe_intermediate_size=INNER, **keys)))
    ours = built(
        num_experts=6, top_k=3, score="sigmoid", scaling_factor=2.5, balance="bias", shared_ffn_hidden_size=2 * INNER
    )
    copied(ours, theirs.state_dict())
    torch.testing.assert_close(ours(tokens()), theirs(tokens()), rtol=0, atol=1e-4)


@torch.no_grad()
def test_equal_weights_give_the_outputs_of_nemotron_h():
    """Experts without gates, a shared one of its own width."""
    keys = {"n_routed_experts": 6, "num_experts_per_tok": 3, "n_group": 1, "topk_group": 1, "norm_topk_prob": True}
    keys |= {"moe_shared_expert_intermediate_size": 8, "routed_scaling_factor": 2.5, "mlp_hidden_act": "relu2"}
    theirs = randomised(NemotronHMoE(NemotronHConfig(hidden_size=WIDTH, moe_intermediate_size=INNER, **keys)))
    shared = {"shared_ffn_hidden_size": 8, "activation": "relu2"}
    ours = built(num_experts=6, top_k=3, score="sigmoid", scaling_factor=2.5, balance="bias", **shared)
    state = theirs.state_dict()
    names = {"router_weight": "gate.weight", "router_bias": "gate.e_score_correction_bias", "up": "experts.up_proj"}
    names |= {"down": "experts.down_proj", "shared.up.weight": "shared_experts.up_proj.weight"}
    names |= {"shared.down.weight": "shared_experts.down_proj.weight"}
    ours.load_state_dict({name: state[their] for name, their in names.items()})
    torch.testing.assert_close(ours(tokens()), theirs(tokens()), rtol=1e-5, atol=1e-4)


def assert_same_with_gradients(ours, theirs, names):
    """Outputs within 1e-4 and gradients within 1e-3 of their norm, on equal weights; `names` are ours -> theirs."""
    state = theirs.state_dict()
    ours.load_state_dict({name: joined(state, their) for name, their in names.items()})
    x, other = tokens(), tokens()
    y, expected = ours(x), theirs(other)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-4)
    assert expected.std() > 0.1
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(2))
    (y * weight).sum().backward()
    (expected * weight).sum().backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters()}
    pairs = {"x": (x.grad, other.grad)}
    pairs |= {n: (p.grad, joined(gradients, names[n])) for n, p in ours.named_parameters() if p.requires_grad}
    for name, (one, reference) in pairs.items():
        assert (one - reference).norm() < 1e-3 * reference.norm(), name


def joined(values, names):
    return torch.cat([values[name] for name in names]) if isinstance(names, tuple) else values[names]


ROUTER = {"router_weight": "gate.weight", "router_bias": "gate.e_score_correction_bias"}
GROUPS = {"num_experts": 8, "top_k": 3, "num_groups": 4, "top_groups": 2, "score": "sigmoid", "balance": "bias"}
GROUPS |= {"scaling_factor": 2.5, "aux_loss": 0.0}
THEIR_GROUPS = {"num_experts_per_tok": 3, "n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5}
THEIR_GROUPS |= {"norm_topk_prob": True, "moe_intermediate_size": INNER, "hidden_size": WIDTH}


def test_a_latent_mixture_is_that_of_nemotron_h():
    """With groups, experts without gates at a quarter of the width, and a shared one at the full width."""
    keys = {"moe_shared_expert_intermediate_size": 8, "mlp_hidden_act": "relu2", "moe_latent_size": 4}
    theirs = randomised(NemotronHMoE(NemotronHConfig(n_routed_experts=8, **keys, **THEIR_GROUPS)))
    ours = built(shared_ffn_hidden_size=8, activation="relu2", latent_size=4, **GROUPS)
    names = {**ROUTER, "up": "experts.up_proj", "down": "experts.down_proj"}
    names |= {"latent_down": "fc1_latent_proj.weight", "latent_up": "fc2_latent_proj.weight"}
    names |= {f"shared.{way}.weight": f"shared_experts.{way}_proj.weight" for way in ("up", "down")}
    assert_same_with_gradients(ours, theirs, names)


@pytest.mark.parametrize(
    ("layer", "config", "experts"),
    [(DeepseekV3MoE, DeepseekV3Config, "n_routed_experts"), (BailingHybridMoE, BailingHybridConfig, "num_experts")],
)
def test_choice_in_groups_is_that_of(layer, config, experts):
    keys = {experts: 8, ("n_shared_experts" if experts != "num_experts" else "num_shared_experts"): 1}
    theirs = randomised(layer(config(**keys, **THEIR_GROUPS)))
    assert theirs.gate.num_group == 4
    ours = built(shared_ffn_hidden_size=INNER, **GROUPS)
    names = {**ROUTER, "gate_up": "experts.gate_up_proj", "down": "experts.down_proj"}
    names["shared.gate_up.weight"] = tuple(f"shared_experts.{way}_proj.weight" for way in ("gate", "up"))
    names["shared.down.weight"] = "shared_experts.down_proj.weight"
    assert_same_with_gradients(ours, theirs, names)


def test_scores_by_roots_of_softplus_are_those_of_deepseek_v4():
    """Weights and choice of its router."""
    config = DeepseekV4Config(
        hidden_size=WIDTH, n_routed_experts=8, num_experts_per_tok=3, routed_scaling_factor=1.5,
        scoring_func="sqrtsoftplus",
    )  # fmt: skip
    theirs, x = randomised(DeepseekV4TopKRouter(config)), tokens()
    _, expected, indices = theirs(x)
    expected = torch.zeros(S * B, 8).scatter(-1, indices, expected).view(S, B, 8)
    log_scores = router_log_scores(F.linear(x, theirs.weight), "sqrt_softplus")
    weights = combining_weights(log_scores, choose(log_scores, 3, theirs.e_score_correction_bias), True, 1.5)
    torch.testing.assert_close(weights, expected, rtol=0, atol=1e-5)
    for one, other in zip(*(torch.autograd.grad(y.square().sum(), [x, theirs.weight]) for y in (weights, expected)),
                          strict=True):  # fmt: skip
        assert (one - other).norm() < 1e-3 * other.norm()


@pytest.mark.parametrize("normalize", [False, True])
@torch.no_grad()
def test_equal_weights_give_the_outputs_of_qwen3_next(normalize):
    """A shared expert times a sigmoid."""
    keys = {"num_experts": 5, "num_experts_per_tok": 2, "norm_topk_prob": normalize}
    keys |= {"shared_expert_intermediate_size": 8, "moe_intermediate_size": INNER}
    theirs = randomised(Qwen3NextSparseMoeBlock(Qwen3NextConfig(hidden_size=WIDTH, **keys)))
    ours = built(shared_ffn_hidden_size=8, shared_gate=True, normalize_top_k=normalize)
    state = theirs.state_dict()
    names = {"router_weight": "gate.weight", "gate_up": "experts.gate_up_proj", "down": "experts.down_proj"}
    names |= {"shared_gate": "shared_expert_gate.weight", "shared.down.weight": "shared_expert.down_proj.weight"}
    gate_up = torch.cat([state[f"shared_expert.{name}_proj.weight"] for name in ("gate", "up")])
    ours.load_state_dict({"shared.gate_up.weight": gate_up, **{name: state[their] for name, their in names.items()}})
    torch.testing.assert_close(ours(tokens()), theirs(tokens()), rtol=0, atol=1e-4)


@torch.no_grad()
def test_equal_weights_give_the_outputs_of_jamba():
    """A softmax over all experts, of which the chosen scores are not normalised."""
    keys = {"num_experts": 5, "num_experts_per_tok": 2, "intermediate_size": INNER}
    theirs = randomised(JambaSparseMoeBlock(JambaConfig(hidden_size=WIDTH, **keys)))
    ours, state = built(normalize_top_k=False), theirs.state_dict()
    names = {"router_weight": "router.weight", "gate_up": "experts.gate_up_proj", "down": "experts.down_proj"}
    ours.load_state_dict({name: state[their] for name, their in names.items()})
    torch.testing.assert_close(ours(tokens()), theirs(tokens()), rtol=0, atol=1e-4)


@torch.no_grad()
def test_equal_weights_give_the_outputs_of_gpt_oss():
    """Biases, clamped gates, packed and transposed experts; a softmax over the chosen logits is one normalised."""
    keys = {"num_local_experts": 5, "num_experts_per_tok": 2, "intermediate_size": INNER}
    theirs = randomised(GptOssMLP(GptOssConfig(hidden_size=WIDTH, swiglu_limit=1.0, **keys)))
    ours, state = built(activation="clamped_swiglu", bias=True, swiglu_limit=1.0), theirs.state_dict()
    gate_up, bias = state["experts.gate_up_proj"].transpose(1, 2), state["experts.gate_up_proj_bias"]
    ours.load_state_dict(
        {
            "router_weight": state["router.weight"],
            "router_logit_bias": state["router.bias"],
            "gate_up": torch.cat([gate_up[:, ::2], gate_up[:, 1::2]], 1),
            "gate_up_bias": torch.cat([bias[:, ::2], bias[:, 1::2]], 1),
            "down": state["experts.down_proj"].transpose(1, 2),
            "down_bias": state["experts.down_proj_bias"],
        }
    )
    torch.testing.assert_close(ours(tokens()), theirs(tokens())[0], rtol=0, atol=1e-4)


def skewed(**keys):
    """A layer whose router prefers its first experts, whatever the token."""
    module = built(num_experts=8, **keys)
    with torch.no_grad():
        module.router_weight.normal_(std=0.1)
        module.router_weight[:, 0] = torch.linspace(1, -1, 8)
    return module


def positive(seed):
    x = tokens(seed=seed).detach()
    x[..., 0] = 1
    return x


def load_of(module, x):
    module.expert_load.zero_()
    module(x).square().mean().backward()
    return module.expert_load.clone()


def unevenness(load):
    """The largest load, in multiples of the mean."""
    return float(load.max() * len(load) / load.sum())


class TestBalance:
    def test_a_moving_bias_evens_the_load(self):
        module = skewed(score="sigmoid", balance="bias", bias_update_rate=0.02)
        before = {name: p.clone() for name, p in module.named_parameters()}
        loads = []
        for step in range(60):
            loads.append(load_of(module, positive(step)))
            module.rebalance(loads[-1])
        assert unevenness(loads[0]) > 2.5
        assert unevenness(sum(loads[-10:])) < 1.3
        changed = {name for name, p in module.named_parameters() if not torch.equal(p, before[name])}
        assert changed == {"router_bias"}

    def test_the_auxiliary_loss_evens_the_load(self):
        def trained(**keys):
            module = skewed(**keys)
            optimizer = torch.optim.Adam([module.router_weight], 0.02)
            for step in range(100):
                optimizer.zero_grad()
                load_of(module, positive(step))
                optimizer.step()
            return unevenness(sum(load_of(module, positive(step)) for step in range(10)))

        assert trained(aux_loss=0.5) < 1.3
        assert trained(balance="none") > 2

    def test_without_a_bias_nothing_moves(self):
        module = skewed(balance="none")
        before = [p.clone() for p in module.parameters()]
        module.rebalance(load_of(module, positive(0)))
        assert all(torch.equal(p, q) for p, q in zip(module.parameters(), before, strict=True))

    def test_losses_are_means_over_sequences(self):
        """Of three in one batch, or of three batches of one whose losses count a third each."""
        module, x = built(aux_loss=1.0, z_loss=0.5), tokens().detach()
        (0 * module(x).sum()).backward()
        whole = module.router_weight.grad.clone()
        module.zero_grad()
        with attached_losses_scale(1 / B):
            for sequence in x.split(1, 1):
                (0 * module(sequence).sum()).backward()
        torch.testing.assert_close(module.router_weight.grad, whole)


class TestLoad:
    def test_counts_every_choice(self):
        module = built(capacity_factor=0.5)
        assert load_of(module, tokens()).sum() == S * B * 2

    def test_counts_choices_in_groups(self):
        """A bias makes one group the best: its two experts share all choices."""
        module = built(**{**GROUPS, "top_groups": 1, "top_k": 2})
        with torch.no_grad():
            module.router_bias.copy_(torch.tensor([0.0, 0, 5, 5, 0, 0, 0, 0]))
        assert load_of(module, tokens()).tolist() == [0, 0, S * B, S * B, 0, 0, 0, 0]

    def test_is_not_counted_without_a_backward_pass(self):
        module = built()
        module(tokens())
        with torch.no_grad():
            module(tokens())
        assert not module.expert_load.any()

    @pytest.mark.parametrize("recompute", ["none", "selective", "full"])
    def test_is_counted_once_where_activations_are_computed_again(self, recompute):
        block = {"type": "moe", "num_experts": 4, "ffn_hidden_size": 8}
        config = resolved_tiny(blocks={"moe": block}, pattern="2*moe").model
        model = LanguageModel(config, TorchBackend(), recompute=lambda block: recompute)
        initialize(model, config, seed=0)
        ids = torch.zeros(2, 8, dtype=torch.long)
        model(ids, ids)[0].mean().backward()
        assert [int(layer.mixer.expert_load.sum()) for layer in model.layers.values()] == [32, 32]

    def test_is_no_part_of_a_checkpoint(self):
        assert "expert_load" not in built().state_dict()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"top_k": 6}, "top_k = 6: expected at most num_experts 5"),
        ({"top_k": 1, "normalize_top_k": True}, "normalize_top_k = true: expected false with top_k 1"),
        ({"balance": "none", "aux_loss": 0.1}, "aux_loss = 0.1: expected 0 with balance none"),
        ({"capacity_factor": 0}, "capacity_factor = 0"),
        ({"shared_gate": True}, "shared_gate = true: expected false without a shared expert"),
        ({"bias": True, "shared_ffn_hidden_size": 8}, "bias = true: expected another value with a shared expert"),
        ({"num_groups": 2}, "num_groups = 2: expected a divisor of num_experts 5 \\(nearest: 1, 5\\)"),
        ({"num_groups": 5, "top_groups": 6}, "top_groups = 6: expected at most num_groups 5"),
        ({"num_groups": 5}, "top_k = 2: expected at most the 1 experts of top_groups 1"),
        ({"score": "sigmod"}, "nearest: sigmoid"),
    ],
)
def test_what_makes_no_sense_is_refused(keys, message):
    with pytest.raises(UserError, match=message):
        tiny_with(keys, {})


def tiny_with(keys, parallel, backend="megatron"):
    block = {"type": "moe", "num_experts": 5, "ffn_hidden_size": 24, **keys}
    model = {**TINY["model"], "blocks": {**TINY["model"]["blocks"], "moe": block}, "pattern": "attn moe"}
    model["backend"] = backend
    return resolve(
        build({**TINY, "model": model, "data": {**TINY["data"], "train": "none"}, "parallel": parallel}, RunConfig)
    )


class TestLayoutsThatCannotBe:
    @pytest.mark.parametrize(
        ("parallel", "message"),
        [
            ({"tensor": 2}, "expected parallel.sequence true beside it, or tensor 1"),
            ({"expert": 2}, "parallel.expert = 2: a layer has 5 experts \\(possible: 1, 5\\)"),
            ({"expert_tensor": 5}, "parallel.expert_tensor = 5: ffn_hidden_size of moe gives 24 gate"),
        ],
    )
    def test_is_refused_when_the_config_is_read(self, parallel, message):
        with pytest.raises(UserError, match=message):
            tiny_with({}, parallel)

    def test_a_shared_expert_that_cannot_be_cut(self):
        with pytest.raises(UserError, match="shared_ffn_hidden_size of moe gives 9 gate"):
            tiny_with({"shared_ffn_hidden_size": 9}, {"tensor": 2, "sequence": True})

    def test_experts_apart_on_the_torch_backend(self):
        with pytest.raises(UserError, match="backend = torch: expected megatron"):
            tiny_with({}, {"expert": 5}, backend="torch")

    def test_fewer_processes_than_shares_of_experts(self):
        with pytest.raises(UserError, match="expert x expert_tensor = 5 to divide the 2"):
            data_parallel_size(tiny_with({}, {"expert": 5}), 2)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("keys", [{}, {"capacity_factor": 1.0}])
def test_experts_in_a_latent_space_under_autocast(bias, keys):
    module, x = built(latent_size=8, bias=bias, **keys), tokens()
    with torch.autocast("cpu", torch.bfloat16):
        y = module(x)
    torch.testing.assert_close(y.float(), module(x), rtol=0.05, atol=0.05)
    (gradient,) = torch.autograd.grad(y.float().sum(), x)
    assert gradient.dtype == torch.float32
    assert gradient.isfinite().all()
