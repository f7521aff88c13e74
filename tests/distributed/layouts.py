"""The table of layouts that must train alike, and the models that they are tried on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

SEQ_LEN, GLOBAL_BATCH, STEPS, SAVED_AT = 16, 4, 8, 3
VOCAB = 64

BLOCKS: dict[str, dict[str, Any]] = {
    "attn": {"type": "attention", "num_heads": 8, "num_kv_heads": 4, "head_dim": 4, "qkv_bias": True},
    "near": {"type": "attention", "num_heads": 4, "window": 5},
    "mamba": {"type": "mamba2", "head_dim": 16, "state_dim": 8, "num_groups": 4, "chunk_size": 8},
    "mlp": {"type": "swiglu", "ffn_hidden_size": 32},
    "ffn": {"type": "mlp", "ffn_hidden_size": 32, "bias": True},
}
MODELS: dict[str, dict[str, Any]] = {
    "transformer": {"pattern": "attn ffn near mlp"},
    "hybrid": {"pattern": "mamba attn mlp mamba mlp"},
    "tied": {"pattern": "mamba mlp attn mlp", "tie_embeddings": True},
}


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
    "tied tp2": _layout("tied", **TP),
    "tied pp2": _layout("tied", **PP),
    "tied pp2 vpp2 dp2 do": _layout("tied", 2, **VPP, **DO),
    "tied cp2 pp2": _layout("tied", **CP, **PP),
}  # fmt: skip
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
    ]
}
TABLE: dict[str, Layout] = {**ONE, **LAYOUTS, **RESUMED}
PROCESSES = max(layout.world_size for layout in TABLE.values())
