"""Entries of the layers that several architectures share, by the name of the layer there and here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hybridtron.checkpoint_reader import stored_as
from hybridtron.config.nearest import one_of
from hybridtron.config.schema import Strict
from hybridtron.convert.architectures.architecture import Settings
from hybridtron.convert.mapping import Entry, Shapes
from hybridtron.errors import UserError
from hybridtron.mixers.attention.rotary_scaling import LinearScaling, Llama3Scaling, RotaryScaling, YarnScaling
from hybridtron.model.config import ModelConfig
from hybridtron.model.tensors import model_tensors


def stored_shapes(model: ModelConfig) -> Shapes:
    """Return the whole shape of each part that a checkpoint of the model stores, by key."""
    return {key: shape for name, spec in model_tensors(model).items() for key, shape in stored_as(name, spec)}


def same(theirs: str, ours: str, names: Mapping[str, str]) -> list[Entry]:
    """Return entries for tensors that are equal here and there: suffix there -> suffix here."""
    return [Entry(theirs + there, (ours + here,)) for there, here in names.items()]


def outer(model: ModelConfig, embedding: str, norm: str, head: str) -> tuple[list[Entry], list[Entry]]:
    """Return the entries before the layers, and those after them; with tied embeddings there is no head."""
    last = [Entry(norm, ("final_norm.weight",))]
    if not model.tie_embeddings:
        last.append(Entry(head, ("head.weight",)))
    return [Entry(embedding, ("embedding.weight",))], last


def attention(
    theirs: str, ours: str, shapes: Shapes, num_heads: int = 1, out: str = "o_proj", norm: str = "norm"
) -> list[Entry]:
    """Return the entries of attention: q_proj, k_proj, v_proj and `out`, with the biases that ours has.

    Where queries and keys are normed, also q_`norm` and k_`norm`. Gates follow the queries of each head.
    """
    entries = []
    for kind in ("weight", "bias"):
        if f"{ours}qkv.{kind}.q" in shapes:
            queries: tuple[str, ...] = (f"{ours}qkv.{kind}.q",)
            if f"{ours}qkv.{kind}.gate" in shapes:
                queries += (f"{ours}qkv.{kind}.gate",)
            entries.append(Entry(f"{theirs}q_proj.{kind}", queries, groups=num_heads if len(queries) > 1 else 1))
            entries += [Entry(f"{theirs}{part}_proj.{kind}", (f"{ours}qkv.{kind}.{part}",)) for part in "kv"]
        if f"{ours}proj.{kind}" in shapes:
            entries.append(Entry(f"{theirs}{out}.{kind}", (f"{ours}proj.{kind}",)))
    if f"{ours}q_norm_weight" in shapes:
        entries += [Entry(f"{theirs}{part}_{norm}.weight", (f"{ours}{part}_norm_weight",)) for part in "qk"]
    return entries


def short_conv(theirs: str, ours: str, shapes: Shapes) -> list[Entry]:
    """Return the entries of a gated short convolution: in_proj, conv and out_proj, with the biases that ours has."""
    channels, taps = shapes[f"{ours}conv_weight"]
    entries = [Entry(f"{theirs}conv.weight", (f"{ours}conv_weight",), shape=(channels, 1, taps))]
    if f"{ours}conv_bias" in shapes:
        entries.append(Entry(f"{theirs}conv.bias", (f"{ours}conv_bias",)))
    for kind in ("weight", "bias"):
        if f"{ours}in_proj.{kind}.B" in shapes:
            entries.append(Entry(f"{theirs}in_proj.{kind}", tuple(f"{ours}in_proj.{kind}.{part}" for part in "BCx")))
            entries.append(Entry(f"{theirs}out_proj.{kind}", (f"{ours}out_proj.{kind}",)))
    return entries


def swiglu(theirs: str, ours: str) -> list[Entry]:
    """Return the entries of a gated feed-forward layer: gate_proj, up_proj and down_proj."""
    up = [Entry(f"{theirs}{part}_proj.weight", (f"{ours}gate_up.weight.{part}",)) for part in ("gate", "up")]
    return [*up, Entry(f"{theirs}down_proj.weight", (f"{ours}down.weight",))]


MOE_TRAINING = ("balance", "aux_loss", "z_loss", "bias_update_rate")
"""Keys of a mixture of experts that change only its training."""

GATED_DELTANET = ("num_heads", "num_value_heads", "key_dim", "head_dim", "conv_kernel")
"""Keys of a gated DeltaNet that every architecture with one can express."""

DECAYS = {"A_log": "A_log", "dt_bias": "dt_bias"}


def gated_deltanet_block(
    settings: Settings, num_heads: int, num_value_heads: int, key_dim: int, head_dim: int
) -> dict[str, Any]:
    """Return the block of a gated DeltaNet from settings linear_...; the arguments are their defaults."""
    return {
        "type": "gated_deltanet",
        "num_heads": settings.get("linear_num_key_heads", num_heads),
        "num_value_heads": settings.get("linear_num_value_heads", num_value_heads),
        "key_dim": settings.get("linear_key_head_dim", key_dim),
        "head_dim": settings.get("linear_value_head_dim", head_dim),
        "conv_kernel": settings.get("linear_conv_kernel_dim", 4),
    }


def gated_deltanet_settings(block: Any) -> dict[str, Any]:
    """Return the settings of a gated DeltaNet: the inverse of `gated_deltanet_block`."""
    return {
        "linear_num_key_heads": block.num_heads,
        "linear_num_value_heads": block.value_heads,
        "linear_key_head_dim": block.key_size,
        "linear_value_head_dim": block.value_size,
        "linear_conv_kernel_dim": block.conv_kernel,
    }


SCALINGS: dict[str, type[Strict]] = {"linear": LinearScaling, "llama3": Llama3Scaling, "yarn": YarnScaling}
_NEEDED = {"linear": ("factor",), "llama3": ("factor", "low_freq_factor", "high_freq_factor"), "yarn": ("factor",)}
_LENGTH = "original_max_position_embeddings"


def rotary_base(settings: Settings, default: float = 10000.0, *keys: str) -> float:
    """Return the base of the rotary frequencies, in either of the forms that config.json has had.

    Raises UserError for frequencies that are scaled, and for parameters besides `keys` that are not known.
    """
    rotary, kind = _rotary(settings)
    if kind != "default":
        raise UserError(f"{settings.file}: rope_type = {kind!r}: expected 'default', for which there are layers here")
    _check_known(settings, rotary, *keys)
    base = rotary.get("rope_theta")
    return float(settings.get("rope_theta", default) if base is None else base)


def scaled_rotary(
    settings: Settings, default: float = 10000.0, default_scaling: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the keys of attention about rotary frequencies, in either of the forms that config.json has had.

    Args:
        settings: of config.json.
        default: base of the frequencies where none is given.
        default_scaling: how the architecture scales them where nothing is given about them.

    Raises UserError for a kind of scaling, and for parameters of it, that are not known.
    """
    rotary, kind = _rotary(settings)
    if not rotary and default_scaling:
        length = _original_length(settings, default_scaling)
        scaling = {**default_scaling, _LENGTH: length}
        return {"rotary_base": settings.get("rope_theta", default), "rotary_scaling": scaling}
    if kind == "default":
        return {"rotary_base": rotary_base(settings, default)}
    if kind not in SCALINGS:
        raise UserError(f"{settings.file}: rope_type = {kind!r}: expected {one_of(kind, ['default', *SCALINGS])}")
    own = [key for key in SCALINGS[kind].model_fields if key != "type"]
    _check_known(settings, rotary, *own)
    for key in _NEEDED[kind]:
        if rotary.get(key) is None:
            raise UserError(f"{settings.file}: rope_parameters.{key} is missing")
    base = rotary.get("rope_theta")
    scaling = {key: rotary[key] for key in own if rotary.get(key) is not None}
    if _LENGTH in own:
        scaling[_LENGTH] = _original_length(settings, rotary)
    return {
        "rotary_base": float(settings.get("rope_theta", default) if base is None else base),
        "rotary_scaling": {"type": kind, **scaling},
    }


def rotary_settings(settings: Settings) -> Any:
    """Return what config.json says of rotary frequencies, as it stands there; empty for nothing.

    Of two settings transformers takes the older one, rope_scaling (modeling_rope_utils.py).
    """
    return settings.get("rope_scaling") or settings.get("rope_parameters") or {}


def _rotary(settings: Settings) -> tuple[Mapping[str, Any], str]:
    """Return what config.json says of rotary frequencies, and its kind. Raises UserError."""
    rotary = rotary_settings(settings)
    settings.ignore("rope_parameters", "rope_scaling", "rope_theta", _LENGTH)
    if not isinstance(rotary, Mapping):
        raise UserError(f"{settings.file}: rope_parameters = {rotary!r}: expected a mapping")
    return rotary, str(rotary.get("rope_type", rotary.get("type", "default")))


def _original_length(settings: Settings, rotary: Mapping[str, Any]) -> Any:
    """Return the length before stretching, from where transformers takes it (modeling_rope_utils.py): the setting of
    that name beside rope_parameters, else the one in it, else max_position_embeddings. Raises UserError."""
    if _LENGTH in settings.values:
        return settings.need(_LENGTH)
    return rotary[_LENGTH] if rotary.get(_LENGTH) is not None else settings.need("max_position_embeddings")


def _check_known(settings: Settings, rotary: Mapping[str, Any], *keys: str) -> None:
    for key, value in rotary.items():
        if key not in ("rope_theta", "rope_type", "type", *keys) and value is not None:
            raise UserError(f"{settings.file}: rope_parameters.{key} = {value!r}: not known for this architecture")


def rotary_parameters(
    base: float, fraction: float | None = None, scaling: RotaryScaling | None = None
) -> dict[str, Any]:
    """Return the rotary frequencies, and which share of the channels rotates where an architecture has that, as
    transformers 5 writes them and as older readers expect them."""
    share = {} if fraction is None else {"partial_rotary_factor": fraction}
    if scaling is None:
        return {"rope_parameters": {"rope_type": "default", "rope_theta": base, **share}, "rope_theta": base, **share}
    own = scaling.model_dump(exclude={"type"}, exclude_none=True)
    return {"rope_parameters": {"rope_type": scaling.type, "rope_theta": base, **own, **share}, **share}
