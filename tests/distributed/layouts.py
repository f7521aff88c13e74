"""The table of layouts in which models must train alike."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tests.distributed.models import MODELS


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
    "transformer tp2 sp": _layout("transformer", **SP),
    "transformer cp2": _layout("transformer", **CP),
    "transformer pp2 vpp2": _layout("transformer", **VPP),
    **{f"hybrid {name}": _layout("hybrid", **layout)  # type: ignore[arg-type]
       for name, layout in {
           "tp2": TP, "tp2 sp": SP, "cp2": CP, "pp2": PP, "pp2 vpp2": VPP, "dp2": {"data": 2},
           "dp2 do": {"data": 2, **DO}, "tp2 cp2": {**TP, **CP},
       }.items()},
    "hybrid tp4 sp": _layout("hybrid", tensor=4, sequence=True),
    "hybrid cp4": _layout("hybrid", context=4),
    "hybrid pp4": _layout("hybrid", pipeline=4),
    "hybrid dp4 do": _layout("hybrid", 4, **DO),
    "hybrid tp2 sp pp2 vpp2 dp2 do": _layout("hybrid", 2, **SP, **VPP, **DO),
    "hybrid tp2 pp2 dp2 do": _layout("hybrid", 2, **TP, **PP, **DO),
    "hybrid recomputed": _layout("hybrid", recompute="full"),
    "hybrid tp2 sp core recomputed": _layout("hybrid", **SP, recompute="selective"),
    "hybrid cp2 some recomputed": _layout("hybrid", **CP, recompute={"mamba": "full", "attn": "selective"}),
    **{f"{model} {name}": _layout(model, **layout)  # type: ignore[arg-type]
       for model in ("hyenas", "states", "rwkv", "linear", "mamba3")
       for name, layout in {"tp2": TP, "cp2": CP, "pp2": PP, "tp2 sp cp2": {**SP, **CP}}.items()},
    "linear tp2 sp": _layout("linear", **SP),
    "mamba3 tp2 sp": _layout("mamba3", **SP),
    "hyenas tp2 sp core recomputed": _layout("hyenas", **SP, recompute="selective"),
    "states tp2 sp core recomputed": _layout("states", **SP, recompute="selective"),
    "rwkv tp2 sp core recomputed": _layout("rwkv", **SP, recompute="selective"),
    **{f"{model} {name}": _layout(model, **layout)  # type: ignore[arg-type]
       for model, names in {
           "grouped": ("tp2 sp", "pp2", "pp2 vpp2"), "sandwich": ("tp2 sp", "pp2"),
           "hyper": ("tp2 sp", "cp2", "pp2 vpp2", "tp2 pp2 recomputed"),
           "depth": ("tp2 sp", "cp2", "pp2 vpp2", "tp2 pp2 recomputed"),
       }.items()
       for name, layout in {
           "tp2 sp": SP, "cp2": CP, "pp2": PP, "pp2 vpp2": VPP, "tp2 pp2 recomputed": {**TP, **PP, "recompute": "full"},
       }.items() if name in names},
    "hybrid pp2 vpp2 offloaded": _layout("hybrid", **VPP, cpu_offload_layers=2),
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
    "moe tp2 sp dp2 ep2 etp2": _layout("moe", 2, **SP, **EP, **ETP),
    "moe cp2 ep2": _layout("moe", **CP, **EP),
    "moe pp2 vpp2": _layout("moe", **VPP),
    "moe tp2 sp cp2 pp2 ep4": _layout("moe", **SP, **CP, **PP, expert=4),
    "moe dp2 ep2 recomputed": _layout("moe", 2, **EP, recompute="full"),
    "moe tp2 sp ep2 some recomputed": _layout("moe", **SP, **EP, recompute={"soft": "selective", "sigmoid": "full"}),
    "dropping dp2 ep2": _layout("dropping", 2, **EP),
    "dropping dp2 etp2": _layout("dropping", 2, **ETP),
    "dropping tp2 sp cp2 ep4": _layout("dropping", **SP, **CP, expert=4),
    "latents tp2 sp ep2": _layout("latents", **SP, **EP),
    "latents cp2 ep2": _layout("latents", **CP, **EP),
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
