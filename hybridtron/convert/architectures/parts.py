"""Entries of the layers that several architectures share, by the name of the layer there and here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hybridtron.checkpoint_reader import stored_as
from hybridtron.convert.architectures.architecture import Settings
from hybridtron.convert.mapping import Entry, Shapes
from hybridtron.errors import UserError
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


def attention(theirs: str, ours: str, shapes: Shapes) -> list[Entry]:
    """Return the entries of attention: q_proj, k_proj, v_proj and o_proj, with the biases that ours has."""
    entries = []
    for kind in ("weight", "bias"):
        if f"{ours}qkv.{kind}.q" in shapes:
            entries += [Entry(f"{theirs}{part}_proj.{kind}", (f"{ours}qkv.{kind}.{part}",)) for part in "qkv"]
        if f"{ours}proj.{kind}" in shapes:
            entries.append(Entry(f"{theirs}o_proj.{kind}", (f"{ours}proj.{kind}",)))
    return entries


def swiglu(theirs: str, ours: str) -> list[Entry]:
    """Return the entries of a gated feed-forward layer: gate_proj, up_proj and down_proj."""
    up = [Entry(f"{theirs}{part}_proj.weight", (f"{ours}gate_up.weight.{part}",)) for part in ("gate", "up")]
    return [*up, Entry(f"{theirs}down_proj.weight", (f"{ours}down.weight",))]


def rotary_base(settings: Settings, default: float = 10000.0, *keys: str) -> float:
    """Return the base of the rotary frequencies, in either of the forms that config.json has had.

    Raises UserError for frequencies that are scaled, and for parameters besides `keys` that are not known.
    """
    rotary = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    settings.ignore("rope_parameters", "rope_scaling", "rope_theta")
    if not isinstance(rotary, Mapping):
        raise UserError(f"{settings.file}: rope_parameters = {rotary!r}: expected a mapping")
    kind = rotary.get("rope_type", rotary.get("type", "default"))
    if kind != "default":
        raise UserError(f"{settings.file}: rope_type = {kind!r}: expected 'default', for which there are layers here")
    for key, value in rotary.items():
        if key not in ("rope_theta", "rope_type", "type", *keys) and value is not None:
            raise UserError(f"{settings.file}: rope_parameters.{key} = {value!r}: not known for this architecture")
    base = rotary.get("rope_theta")
    return float(settings.get("rope_theta", default) if base is None else base)


def rotary_parameters(base: float) -> dict[str, Any]:
    """Return the rotary frequencies as transformers 5 writes them, and as older readers expect them."""
    return {"rope_parameters": {"rope_type": "default", "rope_theta": base}, "rope_theta": base}
