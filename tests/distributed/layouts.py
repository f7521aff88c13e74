"""The table of layouts that must train alike, and the models that they are tried on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

SEQ_LEN, GLOBAL_BATCH, MICRO_BATCH = 16, 8, 2
COMPARED, STEPS, SAVED_AT = 5, 8, 3  # steps of every layout, of those that go on, and before a checkpoint
PRECISION: dict[str, dict[str, Any]] = {  # of a model; else fp32
    "half": {"format": "bf16"},
    "tensorwise": {"format": "fp8", "emulate": True, "skip": ["mamba.in_proj"]},
    "halfmuon": {"format": "bf16"},
    "delayed": {"format": "fp8", "emulate": True, "skip": ["mamba.in_proj"], "recipe": "delayed"},
}
OPTIMIZER: dict[str, dict[str, Any]] = {  # of a model; else AdamW alone
    "tied": {"ema": {"decay": 0.8}, "clip_groups": {"embedding": 0.1, "norms": 0.01}},
    "muon": {
        "type": "muon",
        "ema": {"decay": 0.8},
        "clip_groups": {"embedding": 0.1, "head": 0.2, "norms": 0.01, "soft": 0.05, "attn": 9.0},
    },
    "halfmuon": {
        "type": "muon",
        "ema": {"decay": 0.9, "every": 2},
        "muon": {"scale": "spectral", "lr_ratio": 2.0, "nesterov": False},
    },
}
VOCAB = 64
MOVED = "moved "  # before a model's name: one process that begins with weights moved by about their rounding

BLOCKS: dict[str, dict[str, Any]] = {
    "attn": {
        "type": "attention",
        "num_heads": 8,
        "num_kv_heads": 4,
        "head_dim": 4,
        "qkv_bias": True,
        "proj_bias": True,
    },
    "near": {"type": "attention", "num_heads": 4, "window": 5},
    "mamba": {"type": "mamba2", "head_dim": 16, "state_dim": 8, "num_groups": 4, "chunk_size": 8},
    "mlp": {"type": "swiglu", "ffn_hidden_size": 32},
    "ffn": {"type": "mlp", "ffn_hidden_size": 32, "bias": True},
    "soft": {"type": "moe", "num_experts": 4, "ffn_hidden_size": 16, "aux_loss": 0.1, "z_loss": 1e-2},
    "sigmoid": {
        "type": "moe",
        "num_experts": 8,
        "top_k": 3,
        "ffn_hidden_size": 8,
        "shared_ffn_hidden_size": 16,
        "shared_gate": True,
        "activation": "relu2",
        "score": "sigmoid",
        "scaling_factor": 2.0,
        "balance": "bias",
        "bias_update_rate": 0.02,
    },
}
BLOCKS |= {
    "short": {"type": "short_conv", "bias": True},
    "hyena": {"type": "hyena", "expand": 2, "projection_groups": 4, "filter_order": 4, "bias": True},
    "heads": {"type": "mh_hyena", "num_heads": 8, "filter_order": 4, "filter_length": 16, "filter_layers": 0},
    "se": {"type": "hyena_se", "num_groups": 8},
    "mr": {"type": "hyena_mr", "num_groups": 4, "filter_length": 32},
    "li": {"type": "hyena_li", "filter_order": 4},
    "experts": {"type": "hyena_experts", "num_experts": 4, "expert_size": 8, "filter_order": 4, "filter_length": 16},
    "time": {"type": "rwkv6", "head_dim": 8, "mix_rank": 4, "decay_rank": 4, "chunk_size": 8},
    "channel": {"type": "rwkv6_channel", "ffn_hidden_size": 32},
}
BLOCKS |= {
    "sinks": {"type": "attention", "num_heads": 4, "window": 5, "sinks": True},
    "learned": {"type": "linear_attention", "num_heads": 4, "feature_map": "hadamard", "normalize": False},
    "shared": {"type": "linear_attention", "num_heads": 4, "feature_map": "hadamard", "shared_feature_map": True},
    "latent": {"type": "mla", "num_heads": 4, "kv_rank": 12, "q_rank": 20, "rotary_dim": 4},
    "gla": {"type": "gla", "num_heads": 4, "chunk_size": 8},
    "delta": {
        "type": "gated_deltanet",
        "num_heads": 4,
        "num_value_heads": 8,
        "key_dim": 8,
        "head_dim": 4,
        "chunk_size": 8,
    },
    "selective": {"type": "mamba1", "state_dim": 4},
    "normed": {"type": "mamba1", "state_dim": 4, "inner_norm": "learned", "proj_bias": True, "conv_bias": False},
    "limited": {
        "type": "mamba2",
        "head_dim": 16,
        "state_dim": 8,
        "num_groups": 4,
        "chunk_size": 8,
        "conv_bias": False,
        "proj_bias": True,
        "dt_limit_min": 0.02,
        "dt_limit_max": 0.05,
    },
}
BLOCKS |= {
    "full": {"type": "attention", "num_heads": 8, "num_kv_heads": 4, "qk_norm": "full", "norm_position": "post"},
    "gated": {
        "type": "attention",
        "num_heads": 4,
        "qk_norm": "head",
        "qk_norm_zero_centered": True,
        "gate": "element",
        "rotary_fraction": 0.5,
    },
    "per_head": {"type": "attention", "num_heads": 4, "qk_norm": "head", "gate": "head", "qkv_bias": True},
    "after": {"type": "swiglu", "ffn_hidden_size": 32, "norm_position": "post"},
}
BLOCKS |= {
    "lightning": {"type": "lightning_attention", "num_heads": 4, "chunk_size": 8},
    "retention": {
        "type": "lightning_attention",
        "num_heads": 4,
        "key_dim": 4,
        "decay": "retnet",
        "activation": "none",
        "norm": "head",
        "gate": "silu",
        "rotary": True,
        "chunk_size": 8,
    },
    "time7": {
        "type": "rwkv7",
        "head_dim": 8,
        "decay_rank": 4,
        "rate_rank": 4,
        "gate_rank": 6,
        "value_rank": 4,
        "chunk_size": 8,
    },
    "channel7": {"type": "rwkv6_channel", "ffn_hidden_size": 32, "receptance": False},
    "dynamic": {"type": "short_conv", "conv_kernel": 4, "bias": True, "dynamic": True, "tap_rank": 6},
    "rotating": {"type": "mamba3", "head_dim": 16, "state_dim": 8, "num_groups": 4, "chunk_size": 8},
    "ranked": {
        "type": "mamba3",
        "head_dim": 16,
        "state_dim": 8,
        "num_groups": 4,
        "mimo_rank": 2,
        "chunk_size": 8,
        "output_norm": True,
    },
}
BLOCKS |= {
    "capped": {
        "type": "attention",
        "num_heads": 8,
        "num_kv_heads": 4,
        "softcap": 2.0,
        "output_norm": True,
        "length_scaling": {"type": "llama4", "floor": 4},
    },
    "forgetting": {
        "type": "attention",
        "num_heads": 4,
        "window": 9,
        "sinks": True,
        "forget_gate": True,
        "gate": "head",
        "rotary_fraction": 0.0,
    },
    "stretched": {
        "type": "mla",
        "num_heads": 4,
        "kv_rank": 12,
        "rotary_dim": 4,
        "softmax_scale": 0.5,
        "rotary_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8},
    },
}
BLOCKS |= {
    "kda": {"type": "kda", "num_heads": 4, "head_dim": 6, "decay_rank": 5, "chunk_size": 8},
    "gdn2": {
        "type": "kda",
        "num_heads": 4,
        "decay_rank": 0,
        "gate_rank": 0,
        "gate_lower_bound": -5.0,
        "erase_gate": True,
        "write_gate": True,
        "chunk_size": 8,
    },
    "product": {"type": "gated_deltanet", "num_heads": 4, "key_dim": 8, "householder_steps": 2},
    "comba": {
        "type": "gated_deltanet",
        "num_heads": 4,
        "num_value_heads": 8,
        "key_dim": 8,
        "head_dim": 4,
        "read_back": True,
        "output_correction": True,
    },
}
BLOCKS["beside"] = {"type": "parallel", "branches": [BLOCKS["gla"], BLOCKS["near"], BLOCKS["mlp"]], "merge": "gate"}
BLOCKS["uneven"] = {  # context parallelism cuts the heads of its first branch and leaves the 34 units of the second
    "type": "parallel",
    "branches": [{"type": "attention", "num_heads": 4}, {"type": "swiglu", "ffn_hidden_size": 34}, BLOCKS["gla"]],
}
BLOCKS["tight"] = {**BLOCKS["soft"], "capacity_factor": 1.0, "activation": "clamped_swiglu", "bias": True}
BLOCKS["grouped"] = {
    **BLOCKS["sigmoid"],
    "score": "sqrt_softplus",
    "latent_size": 16,
    "num_groups": 4,
    "top_groups": 2,
    "aux_loss": 0.1,
}
BLOCKS["narrow"] = {**BLOCKS["tight"], "latent_size": 16}
BLOCKS["gathered"] = {**BLOCKS["soft"], "dispatcher": "allgather"}
MODELS: dict[str, dict[str, Any]] = {
    "transformer": {"pattern": "attn ffn near mlp"},
    "hybrid": {"pattern": "mamba attn mlp mamba mlp"},
    "half": {"pattern": "mamba attn mlp mamba"},
    "tensorwise": {"pattern": "mamba attn mlp soft"},
    "delayed": {"pattern": "mamba attn mlp soft"},
    "tied": {"pattern": "mamba mlp attn mlp", "tie_embeddings": True},
    "moe": {"pattern": "attn soft mamba sigmoid"},
    "dropping": {"pattern": "attn tight ffn"},
    "gathered": {"pattern": "attn gathered ffn"},
    "hyenas": {"pattern": "short hyena heads se mr li experts mlp"},
    "states": {"pattern": "sinks learned shared gla delta selective normed limited beside latent"},
    "rwkv": {"pattern": "time channel attn time channel"},
    "linear": {"pattern": "lightning time7 retention channel7 time7 lightning"},
    "mamba3": {"pattern": "dynamic rotating ranked ffn"},
    "uneven": {"pattern": "uneven ffn"},
    "latents": {
        "pattern": "attn grouped mamba narrow",
        "mtp": {"depth": 2, "pattern": "near grouped", "shared": True},
    },
    "further": {
        "pattern": "mamba mlp attn mlp",
        "mtp": {"depth": 3, "pattern": "attn mlp", "loss_weight": 0.7},
        "tie_embeddings": True,
    },
    "muon": {"pattern": "attn soft mamba delta mlp"},
    "halfmuon": {"pattern": "mamba attn mlp mamba"},
    "normed": {"pattern": "full after gated per_head", "zero_centered_norms": True},
    "options": {"pattern": "capped forgetting stretched mlp"},
    "packed": {"pattern": "attn mamba channel selective experts beside"},
    "mapped": {"pattern": "attn mamba mamba mlp mlp", "vocab_size": 384},
    "grouped": {"pattern": "attn mlp mamba ffn", "residual": {"type": "parallel"}},
    "sandwich": {"pattern": "attn mlp mamba ffn", "residual": {"type": "sandwich"}},
    "hyper": {
        "pattern": "after attn mlp mamba ffn",
        "init_std": 0.1,
        "residual": {"type": "hyper_connections", "streams": 3, "sinkhorn_iterations": 4},
    },
    "depth": {
        "pattern": "attn mlp mamba ffn after",
        "residual": {"type": "attention_residuals", "block_size": 2},
    },
    "deltas": {"pattern": "kda product attn gdn2 comba mlp"},
}
ISOLATED = {"packed", "deltas", "further"}  # models whose sequences hold documents that are kept apart
INITIAL: dict[str, tuple[str, dict[str, Any]]] = {  # model -> the one whose weights it begins with, and train.init_*
    "mapped": (
        "hybrid",
        {
            "init_map": {"attn": "attn", "layers.1": "layers.3", "layers.2": "layers.3", "layers.3": "layers.4",
                         "layers.4": None},
            "init_left_over": ["layers.0", "layers.2"],
            "init_vocabulary": "extend",
        },
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """`data` copies of a model of so many processes; `after` names the layout whose checkpoint it goes on from."""

    model: str
    data: int = 1
    after: str = ""
    parallel: dict[str, Any] = field(default_factory=dict)

    @property
    def world_size(self) -> int:
        size = self.data
        for key in ("tensor", "context", "pipeline"):
            size *= self.parallel.get(key, 1)
        return size


def _layout(model: str, data: int = 1, after: str = "", **parallel: Any) -> Layout:
    return Layout(model, data, after, parallel)


TP, SP, CP, PP = {"tensor": 2}, {"tensor": 2, "sequence": True}, {"context": 2}, {"pipeline": 2}
VPP = {"pipeline": 2, "virtual_pipeline": 2}
DO = {"distributed_optimizer": True}
OVERLAP = {"overlap_grad_reduce": True}
DO_OVERLAP = {**DO, **OVERLAP, "overlap_param_gather": True}
TP_OVERLAP = {"tp_comm_overlap": True}
EP, ETP = {"expert": 2}, {"expert_tensor": 2}

ONE = {f"{model}": _layout(model) for model in MODELS}
LAYOUTS: dict[str, Layout] = {
    **{f"{model} {name}": _layout(model, **layout)  # type: ignore[arg-type]
       for model in ("transformer", "hybrid")
       for name, layout in {
           "tp2": TP, "tp2 sp": SP, "cp2": CP, "pp2": PP, "pp2 vpp2": VPP, "dp2": {"data": 2},
           "dp2 do": {"data": 2, **DO}, "tp2 pp2": {**TP, **PP}, "tp2 cp2": {**TP, **CP}, "cp2 pp2": {**CP, **PP},
       }.items()},
    "hybrid tp4": _layout("hybrid", tensor=4),
    "hybrid tp4 sp": _layout("hybrid", tensor=4, sequence=True),
    "hybrid cp4": _layout("hybrid", context=4),
    "hybrid pp4": _layout("hybrid", pipeline=4),
    "hybrid dp4 do": _layout("hybrid", 4, **DO),
    "hybrid tp2 sp cp2 pp2": _layout("hybrid", **SP, **CP, **PP),
    "hybrid tp2 sp pp2 vpp2 dp2 do": _layout("hybrid", 2, **SP, **VPP, **DO),
    "hybrid tp2 pp2 dp2 do": _layout("hybrid", 2, **TP, **PP, **DO),
    "hybrid recomputed": _layout("hybrid", recompute="full"),
    "hybrid tp2 sp core recomputed": _layout("hybrid", **SP, recompute="selective"),
    "hybrid cp2 some recomputed": _layout("hybrid", **CP, recompute={"mamba": "full", "attn": "selective"}),
    **{f"{model} {name}": _layout(model, **layout)  # type: ignore[arg-type]
       for model in ("hyenas", "states", "rwkv", "linear", "mamba3")
       for name, layout in {"tp2": TP, "tp2 sp": SP, "cp2": CP, "pp2": PP, "tp2 sp cp2": {**SP, **CP}}.items()},
    "hyenas tp2 sp core recomputed": _layout("hyenas", **SP, recompute="selective"),
    "states tp2 sp core recomputed": _layout("states", **SP, recompute="selective"),
    "rwkv tp2 sp core recomputed": _layout("rwkv", **SP, recompute="selective"),
    **{f"{model} {name}": _layout(model, **layout)  # type: ignore[arg-type]
       for model, names in {
           "grouped": ("tp2 sp", "pp2", "pp2 vpp2"), "sandwich": ("tp2 sp", "pp2"),
           "hyper": ("tp2 sp", "cp2", "pp2", "pp2 vpp2", "tp2 pp2 recomputed"),
           "depth": ("tp2 sp", "cp2", "pp2", "pp2 vpp2", "tp2 pp2 recomputed"),
       }.items()
       for name, layout in {
           "tp2 sp": SP, "cp2": CP, "pp2": PP, "pp2 vpp2": VPP, "tp2 pp2 recomputed": {**TP, **PP, "recompute": "full"},
       }.items() if name in names},
    "uneven tp2 cp2": _layout("uneven", **TP, **CP),
    "normed tp2": _layout("normed", **TP),
    "normed tp2 sp core recomputed": _layout("normed", **SP, recompute="selective"),
    "normed tp2 cp2": _layout("normed", **TP, **CP),
    "options tp2": _layout("options", **TP),
    "options tp2 sp core recomputed": _layout("options", **SP, recompute="selective"),
    "options cp2": _layout("options", **CP),
    "options pp2": _layout("options", **PP),
    "packed tp2": _layout("packed", **TP),
    "packed tp2 sp core recomputed": _layout("packed", **SP, recompute="selective"),
    "packed cp2": _layout("packed", **CP),
    "packed pp2 vpp2": _layout("packed", **VPP),
    "packed dp2 do": _layout("packed", 2, **DO),
    "packed tp2 sp cp2 pp2 recomputed": _layout("packed", **SP, **CP, **PP, recompute="full"),
    "deltas tp2": _layout("deltas", **TP),
    "deltas tp2 sp core recomputed": _layout("deltas", **SP, recompute="selective"),
    "deltas cp2": _layout("deltas", **CP),
    "deltas pp2": _layout("deltas", **PP),
    "deltas tp2 sp cp2": _layout("deltas", **SP, **CP),
    "mapped tp2 pp2": _layout("mapped", **TP, **PP),
    "mapped dp2 do": _layout("mapped", 2, **DO),
    "half dp2 do": _layout("half", 2, **DO),
    "half pp2 vpp2 dp2 do": _layout("half", 2, **VPP, **DO),
    "tensorwise tp2 sp": _layout("tensorwise", **SP),
    "tensorwise cp2": _layout("tensorwise", **CP),
    "delayed tp2 sp ep2": _layout("delayed", **SP, **EP),
    "delayed dp2 do": _layout("delayed", 2, **DO),
    "delayed pp2": _layout("delayed", **PP),
    "tied tp2": _layout("tied", **TP),
    "tied pp2": _layout("tied", **PP),
    "tied pp2 vpp2 dp2 do": _layout("tied", 2, **VPP, **DO),
    "tied cp2 pp2": _layout("tied", **CP, **PP),
    "moe dp2 ep2": _layout("moe", 2, **EP),
    "moe dp2 ep2 do": _layout("moe", 2, **EP, **DO),
    "moe dp4 ep4": _layout("moe", 4, expert=4),
    "moe dp4 ep2 do": _layout("moe", 4, **EP, **DO),
    "moe dp2 etp2": _layout("moe", 2, **ETP),
    "moe tp2 sp": _layout("moe", **SP),
    "moe tp2 sp ep2": _layout("moe", **SP, **EP),
    "moe tp2 sp etp2": _layout("moe", **SP, **ETP),
    "moe tp2 sp dp2 ep2 etp2": _layout("moe", 2, **SP, **EP, **ETP),
    "moe cp2 ep2": _layout("moe", **CP, **EP),
    "moe pp2 vpp2": _layout("moe", **VPP),
    "moe pp2 dp2 ep2 do": _layout("moe", 2, **PP, **EP, **DO),
    "moe tp2 sp cp2 pp2 ep4": _layout("moe", **SP, **CP, **PP, expert=4),
    "moe dp2 ep2 recomputed": _layout("moe", 2, **EP, recompute="full"),
    "moe tp2 sp ep2 some recomputed": _layout("moe", **SP, **EP, recompute={"soft": "selective", "sigmoid": "full"}),
    "dropping dp2 ep2": _layout("dropping", 2, **EP),
    "dropping dp2 etp2": _layout("dropping", 2, **ETP),
    "dropping tp2 sp cp2 ep4": _layout("dropping", **SP, **CP, expert=4),
    "latents tp2 sp ep2": _layout("latents", **SP, **EP),
    "latents cp2 ep2": _layout("latents", **CP, **EP),
    "latents pp2": _layout("latents", **PP),
    "latents pp2 vpp2": _layout("latents", **VPP),
    "latents dp2 etp2 do": _layout("latents", 2, **ETP, **DO),
    "further tp2": _layout("further", **TP),
    "further cp2 pp2": _layout("further", **CP, **PP),
    "further pp2 vpp2 dp2 do": _layout("further", 2, **VPP, **DO),
    "muon tp2 sp": _layout("muon", **SP),
    "muon tp2 sp pp2 ep2": _layout("muon", **SP, **PP, **EP),
    "muon dp2 do": _layout("muon", 2, **DO),
    "muon dp4 ep2 do": _layout("muon", 4, **EP, **DO),
    "muon tp2 sp dp2 etp2 do": _layout("muon", 2, **SP, **ETP, **DO),
    "halfmuon dp2 do": _layout("halfmuon", 2, **DO),
    "hybrid dp2 overlap": _layout("hybrid", 2, **OVERLAP),
    "hybrid dp2 do overlap": _layout("hybrid", 2, **DO_OVERLAP),
    "tied pp2 vpp2 dp2 do overlap": _layout("tied", 2, **VPP, **DO_OVERLAP),
    "moe dp2 ep2 do overlap": _layout("moe", 2, **EP, **DO_OVERLAP),
    "muon tp2 sp dp2 do overlap": _layout("muon", 2, **SP, **DO_OVERLAP),
    "latents cp2 dp2 overlap": _layout("latents", 2, **CP, **OVERLAP),
    "half dp2 do overlap": _layout("half", 2, **DO_OVERLAP),
    "transformer tp2 overlap": _layout("transformer", **TP, **TP_OVERLAP),
    "moe tp2 sp pp2 overlap recomputed": _layout("moe", **SP, **PP, **TP_OVERLAP, recompute="full"),
    "gathered dp2 ep2": _layout("gathered", 2, **EP),
    "gathered tp2 sp dp2 ep2 etp2": _layout("gathered", 2, **SP, **EP, **ETP),
}  # fmt: skip
LATE = {  # whose parameters are not numbers after a step until their gathers are waited for
    f"{name} do overlap" for name in ("tied pp2 vpp2 dp2", "moe dp2 ep2", "muon tp2 sp dp2")
}
RESUMED: dict[str, Layout] = {
    f"{after} -> {name}": _layout(after.split()[0], after=after, **layout)  # type: ignore[arg-type]
    for after, name, layout in [
        ("hybrid", "tp2 pp2", {**TP, **PP}),
        ("hybrid", "dp2 do", {"data": 2, **DO}),
        ("hybrid tp2", "one", {}),
        ("hybrid dp2 do", "tp2 sp", SP),
        ("hybrid dp2 do", "one", {}),
        ("hybrid pp2 vpp2", "cp2", CP),
        ("hybrid tp2 pp2 dp2 do", "dp4 do", {"data": 4, **DO}),
        ("hybrid tp2 cp2", "pp4", {"pipeline": 4}),
        ("tied pp2 vpp2 dp2 do", "tp2", TP),
        ("tied tp2", "pp2 vpp2", VPP),
        ("hyper tp2 sp", "pp2 vpp2", VPP),
        ("depth pp2 vpp2", "tp2 sp", SP),
        ("half", "dp2 do", {"data": 2, **DO}),
        ("half dp2 do", "tp2", TP),
        ("delayed pp2", "tp2 sp", SP),
        ("moe dp2 ep2", "one", {}),
        ("muon tp2 sp dp2 etp2 do", "one", {}),
        ("muon", "pp2 dp2 ep2 do", {"data": 2, **PP, **EP, **DO}),
        ("latents tp2 sp ep2", "pp2 dp2 do", {"data": 2, **PP, **DO}),
        ("latents pp2 vpp2", "cp2", CP),
        ("halfmuon dp2 do", "tp2 pp2", {**TP, **PP}),
        ("moe tp2 sp ep2", "pp2 dp2 ep2 do", {"data": 2, **PP, **EP, **DO}),
        ("moe dp2 ep2 do", "tp2 sp etp2", {**SP, **ETP}),
        ("hybrid dp2 do overlap", "dp2 overlap", {"data": 2, **OVERLAP}),
    ]
}
TABLE: dict[str, Layout] = {**ONE, **LAYOUTS, **RESUMED}
SAVED = {layout.after for layout in RESUMED.values()}
PROCESSES = max(layout.world_size for layout in TABLE.values())
