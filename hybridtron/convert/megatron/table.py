"""Names and arrangements of the tensors of megatron-core's GPTModel and MambaModel, as data.

They are those that `sharded_state_dict` of megatron-core 0.16.1 gives to `dist_checkpointing.save`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Literal

from hybridtron.convert.mapping.entry import Entry, Shapes, check_complete
from hybridtron.convert.mapping.parts import stored_shapes
from hybridtron.convert.mapping.table import Table
from hybridtron.convert.megatron.layers import LAYERS, NUMBERED
from hybridtron.errors import UserError
from hybridtron.mixers.contract import MixerConfig
from hybridtron.model.config import ModelConfig

Kind = Literal["gpt", "mamba"]
Spec = Literal["transformer-engine", "local"]

FINAL_NORMS: dict[Kind, str] = {"gpt": "decoder.final_layernorm.weight", "mamba": "decoder.final_norm.weight"}
CLASSES: dict[Kind, str] = {"gpt": "GPTModel", "mamba": "MambaModel"}
# A norm belongs to the linear after it in Transformer Engine's modules, and is a module of its own in others.
NORMS: dict[str, tuple[str, ...]] = {
    "attention": ("self_attention.linear_qkv.layer_norm_weight", "input_layernorm.weight"),
    "mamba2": ("mixer.in_proj.layer_norm_weight", "norm.weight"),
    "mlp": ("mlp.linear_fc1.layer_norm_weight", "pre_mlp_layernorm.weight"),
    "swiglu": ("mlp.linear_fc1.layer_norm_weight", "pre_mlp_layernorm.weight"),
    "moe": ("pre_mlp_layernorm.weight", "mlp.linear_fc1.layer_norm_weight"),
}


@dataclass(frozen=True)
class Naming:
    """How a checkpoint names and arranges what it holds.

    kind: the class of the model.
    stacked: whether the layers of a GPTModel lie in one tensor, along a first axis. Otherwise each has its own, with
        its number in the name, as in every MambaModel.
    singletons: whether gate and up projection, and the experts, are tensors of their own (`singleton_local_shards`).
    spec: whose modules the norms belong to, where nothing else tells; see NORMS.
    """

    kind: Kind
    stacked: bool
    singletons: bool = False
    spec: Spec = "transformer-engine"


def naming_of(keys: Collection[str], file: str) -> Naming:
    """Find out how a checkpoint with tensors of these names is arranged. Raises UserError for no model of the two."""
    kinds: list[Kind] = [kind for kind, norm in FINAL_NORMS.items() if norm in keys]
    if len(kinds) != 1:
        raise UserError(f"{file}: holds neither {' nor '.join(FINAL_NORMS.values())}: no GPTModel or MambaModel")
    layers = [key for key in keys if key.startswith(LAYERS)]
    stacked = bool(layers) and not any(NUMBERED.fullmatch(key) for key in layers)
    return Naming(kinds[0], stacked, any(key.endswith(("_w", "_v")) for key in layers))


def kind_of(model: ModelConfig) -> Kind:
    """Return the class that has layers like those of a model: GPTModel wherever it can."""
    types = [model.blocks[name].type for name in model.layer_names]
    return "gpt" if is_gpt(types) else "mamba"


def is_gpt(types: list[str]) -> bool:
    """Return whether layers of these types are attention and feed-forward in turn."""
    attention, feed_forward = types[::2], types[1::2]
    return len(attention) == len(feed_forward) and all(
        first == "attention" and second in ("mlp", "swiglu", "moe")
        for first, second in zip(attention, feed_forward, strict=True)
    )


def table(model: ModelConfig, naming: Naming, present: Collection[str] = ()) -> Table:
    """Return the entries of all tensors of a model, with a tensor for each layer even where they are stacked.

    Of two names for a norm, that which is present counts.
    """
    shapes = stored_shapes(model)
    entries = [Entry("embedding.word_embeddings.weight", ("embedding.weight",))]
    for i, name in enumerate(model.layer_names):
        layer = i // 2 if naming.kind == "gpt" else i
        theirs = f"{LAYERS}{layer}."
        norm = _norm(model.blocks[name].type, theirs, naming, present)
        entries.append(Entry(norm, (f"layers.{i}.norm.weight",)))
        entries += _layer(model.blocks[name], theirs, f"layers.{i}.", naming, shapes)
    entries.append(Entry(FINAL_NORMS[naming.kind], ("final_norm.weight",)))
    if not model.tie_embeddings:
        entries.append(Entry("output_layer.weight", ("head.weight",)))
    check_complete(entries, shapes)
    return Table(f"megatron-core's {CLASSES[naming.kind]}", entries, shapes)


def _norm(kind: str, theirs: str, naming: Naming, present: Collection[str]) -> str:
    names = [theirs + name for name in NORMS[kind]]
    # megatron-core's own specs of GPTModel rename the norms as if they were Transformer Engine's.
    default = names[1] if kind == "moe" and naming.spec == "local" and naming.kind == "gpt" else names[0]
    return next((name for name in names if name in present), default)


def _layer(block: MixerConfig, theirs: str, ours: str, naming: Naming, shapes: Shapes) -> list[Entry]:
    ours += "mixer."
    if block.type == "attention":
        groups = block.kv_heads  # type: ignore[attr-defined]
        return list(_attention(f"{theirs}self_attention.", ours, groups, shapes))
    if block.type == "mamba2":
        return list(_mamba(f"{theirs}mixer.", ours, shapes))
    if block.type == "moe":
        return list(_experts(f"{theirs}mlp.", ours, naming.singletons, shapes))
    if block.type == "swiglu":
        return list(_gated(f"{theirs}mlp.", ours, naming.singletons))
    return list(_feed_forward(f"{theirs}mlp.", ours, shapes))


def _attention(theirs: str, ours: str, groups: int, shapes: Shapes) -> Iterator[Entry]:
    """Yield attention: of every group of queries its queries, their gates, its key and its value, in turn."""
    for kind in ("weight", "bias"):
        packed = (f"{ours}qkv.{kind}.{part}" for part in ("q", "gate", "k", "v"))
        qkv = tuple(part for part in packed if part in shapes)
        if qkv:
            yield Entry(f"{theirs}linear_qkv.{kind}", qkv, groups=groups)
        if f"{ours}proj.{kind}" in shapes:
            yield Entry(f"{theirs}linear_proj.{kind}", (f"{ours}proj.{kind}",))
    for part in "qk":
        if f"{ours}{part}_norm_weight" in shapes:
            yield Entry(f"{theirs}{part}_layernorm.weight", (f"{ours}{part}_norm_weight",))


def _mamba(theirs: str, ours: str, shapes: Shapes) -> Iterator[Entry]:
    for part in ("z", "x", "B", "C", "dt"):
        yield Entry(f"{theirs}in_proj.weight.{part}", (f"{ours}in_proj.weight.{part}",))
    for part in ("x", "B", "C"):
        channels, width = shapes[f"{ours}conv_weight.{part}"]
        yield Entry(f"{theirs}conv1d.weight.{part}", (f"{ours}conv_weight.{part}",), shape=(channels, 1, width))
        yield Entry(f"{theirs}conv1d.bias.{part}", (f"{ours}conv_bias.{part}",))
    for name in ("dt_bias", "A_log", "D"):
        yield Entry(theirs + name, (ours + name,))
    yield Entry(f"{theirs}norm.weight", (f"{ours}norm_weight",))
    yield Entry(f"{theirs}out_proj.weight", (f"{ours}out_proj.weight",))


def _feed_forward(theirs: str, ours: str, shapes: Shapes) -> Iterator[Entry]:
    for kind in ("weight", "bias"):
        for there, here in (("linear_fc1", "up"), ("linear_fc2", "down")):
            if f"{ours}{here}.{kind}" in shapes:
                yield Entry(f"{theirs}{there}.{kind}", (f"{ours}{here}.{kind}",))


def _gated(theirs: str, ours: str, singletons: bool) -> Iterator[Entry]:
    yield from _gate_and_up(f"{theirs}linear_fc1.weight", f"{ours}gate_up.weight", singletons)
    yield Entry(f"{theirs}linear_fc2.weight", (f"{ours}down.weight",))


def _gate_and_up(theirs: str, ours: str, singletons: bool, axis: int = 0, expert: int | None = None) -> Iterator[Entry]:
    gate, up = f"{ours}.gate", f"{ours}.up"
    if singletons:
        yield Entry(f"{theirs}_w", (gate,), expert=expert)
        yield Entry(f"{theirs}_v", (up,), expert=expert)
    else:
        yield Entry(theirs, (gate, up), axis=axis)


def _experts(theirs: str, ours: str, singletons: bool, shapes: Shapes) -> Iterator[Entry]:
    """Yield a mixture of experts; grouped and sequential experts are stored alike."""
    yield Entry(f"{theirs}router.weight", (f"{ours}router_weight",))
    if f"{ours}router_bias" in shapes:
        yield Entry(f"{theirs}router.expert_bias", (f"{ours}router_bias",))
    every = f"{theirs}experts.experts."
    gated = f"{ours}up" not in shapes
    for expert in range(shapes[f"{ours}down"][0]) if singletons else [None]:
        one = every if expert is None else f"{every}{expert}."
        if gated:
            yield from _gate_and_up(f"{one}linear_fc1.weight", f"{ours}gate_up", singletons, 1, expert)
        else:
            yield Entry(f"{one}linear_fc1.weight", (f"{ours}up",), expert=expert)
        yield Entry(f"{one}linear_fc2.weight", (f"{ours}down",), expert=expert)
    if f"{ours}shared_gate" in shapes:
        yield Entry(f"{theirs}shared_experts.gate_weight", (f"{ours}shared_gate",))
    if f"{ours}shared.down.weight" in shapes and gated:
        yield from _gated(f"{theirs}shared_experts.", f"{ours}shared.", singletons)
    elif f"{ours}shared.down.weight" in shapes:
        yield from _feed_forward(f"{theirs}shared_experts.", f"{ours}shared.", shapes)
